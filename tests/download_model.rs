//! `download_model.sh` against a small web server in this process: a repository with tiny files that drops connections,
//! ignores ranges, redirects, refuses or lies. Every case runs with curl and with GNU Wget, where they
//! are installed. What each checks is that the model directory never holds a file that is not the repository's, and what the server saw.
#![cfg(unix)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/download_model.sh");
const REPOSITORY: &str = "/mistralai/Voxtral-Mini-4B-Realtime-2602";
const WEIGHTS: &str = "consolidated.safetensors";
const WEIGHTS_SHA256: &str = "e6224c81fe861dc5a21b9a81d9d2e2ec22c1a6b8a3df3f125801a384fe64ffeb";
const TEKKEN_SHA256: &str = "6a5dac47ec482a011b392506140e78b50e4c117a31eceffbe08e72ab9f0bc316";
const PARAMS: &[u8] = b"{\n  \"dim\": 3072\n}\n";
const HTML: &[u8] = b"<!DOCTYPE html>\n<html><body>Please log in.</body></html>\n";

fn weights() -> Vec<u8> {
    (0..400_000u64).map(|i| (((i * i) >> 5) ^ (i >> 9)) as u8).collect()
}

fn tekken() -> Vec<u8> {
    format!("{{\"vocab\": [{}2]}}", "1, ".repeat(20_000)).into_bytes()
}

fn pointer(sha256: &str, size: u64) -> Vec<u8> {
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n").into_bytes()
}

fn resolve(name: &str) -> String {
    format!("{REPOSITORY}/resolve/main/{name}")
}

fn raw(name: &str) -> String {
    format!("{REPOSITORY}/raw/main/{name}")
}

// ---- the server ----

#[derive(Clone, Debug)]
struct Request {
    method: String,
    path: String,
    range_start: Option<usize>,
    authorization: Option<String>,
}

struct Reply {
    status: u16,
    body: Vec<u8>,
    location: Option<String>,
    /// Whether ranges are served.
    ranges: bool,
    /// Break the connection after so many bytes of the body.
    cut: Option<usize>,
    /// Wait between portions of 20 kB.
    pause: Duration,
}

impl Reply {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Reply { status, body: body.into(), location: None, ranges: true, cut: None, pause: Duration::ZERO }
    }

    fn redirect(location: String) -> Self {
        Reply { location: Some(location), ..Reply::new(302, *b"Found. Redirecting.") }
    }
}

struct Server {
    endpoint: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// `handle` answers a request; its second argument counts the earlier requests with this method and path.
    fn start(handle: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let handle = Arc::new(handle);
        let shared_log = log.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, log, handle) = (stream.unwrap(), shared_log.clone(), handle.clone());
                thread::spawn(move || {
                    // A client that hangs up early is one of the cases, not a failure of the server.
                    let _ = serve(stream, &log, &*handle);
                });
            }
        });
        Server { endpoint, log }
    }

    fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// The range starts of all GET requests for the weights' content.
    fn weight_gets(&self) -> Vec<Option<usize>> {
        let path = resolve(WEIGHTS);
        self.requests().iter().filter(|r| r.method == "GET" && r.path == path).map(|r| r.range_start).collect()
    }
}

fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    handle: &(dyn Fn(&Request, usize) -> Reply + Send + Sync),
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = HashMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let range_start = headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let request = Request { method, path, range_start, authorization: headers.get("authorization").cloned() };
    let earlier = {
        let mut log = log.lock().unwrap();
        log.push(request.clone());
        log.iter().filter(|r| r.method == request.method && r.path == request.path).count() - 1
    };
    let mut reply = handle(&request, earlier);

    let mut head = String::new();
    let total = reply.body.len();
    if let (Some(start), true, 200) = (range_start, reply.ranges, reply.status) {
        if start < total {
            reply.status = 206;
            reply.body.drain(..start);
            head += &format!("Content-Range: bytes {start}-{}/{total}\r\n", total - 1);
        } else {
            reply = Reply::new(416, Vec::new());
        }
    }
    if let Some(location) = &reply.location {
        head += &format!("Location: {location}\r\n");
    }
    let length = reply.body.len();
    let status = reply.status;
    write!(stream, "HTTP/1.1 {status} Status\r\nContent-Length: {length}\r\n{head}Connection: close\r\n\r\n")?;
    if request.method != "HEAD" {
        for portion in reply.body[..reply.cut.unwrap_or(length)].chunks(20_000) {
            stream.write_all(portion)?;
            thread::sleep(reply.pause);
        }
    }
    Ok(())
}

/// The reply of a server where nothing is wrong.
fn healthy(request: &Request) -> Reply {
    let path = request.path.as_str();
    let files: [(String, Vec<u8>); 6] = [
        (raw("params.json"), PARAMS.to_vec()),
        (resolve("params.json"), PARAMS.to_vec()),
        (raw("tekken.json"), pointer(TEKKEN_SHA256, tekken().len() as u64)),
        (resolve("tekken.json"), tekken()),
        (raw(WEIGHTS), pointer(WEIGHTS_SHA256, weights().len() as u64)),
        (resolve(WEIGHTS), weights()),
    ];
    match files.into_iter().find(|(name, _)| name == path) {
        Some((_, body)) => Reply::new(200, body),
        None => Reply::new(404, *b"Not found"),
    }
}

/// A healthy server but for requests of one path.
fn healthy_but(path: String, handle: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |request, nth| if request.path == path { handle(request, nth) } else { healthy(request) })
}

// ---- the script ----

/// The download tools of this machine that the script can use; every test runs with each.
fn tools() -> Vec<&'static str> {
    let has = |tool: &str, mark: &str| {
        let version = Command::new(tool).arg("--version").output();
        version.is_ok_and(|v| String::from_utf8_lossy(&v.stdout).contains(mark))
    };
    let tools: Vec<_> = [("curl", "curl"), ("wget", "GNU Wget")].into_iter().filter(|(t, mark)| has(t, mark)).collect();
    assert!(!tools.is_empty(), "these tests need curl or GNU Wget");
    tools.into_iter().map(|(tool, _)| tool).collect()
}

struct Run {
    directory: tempfile::TempDir,
    tool: &'static str,
    /// A folder that comes first in PATH.
    path_first: Option<PathBuf>,
    token: Option<&'static str>,
}

impl Run {
    fn new(tool: &'static str) -> Self {
        Run { directory: tempfile::tempdir().unwrap(), tool, path_first: None, token: None }
    }

    fn model(&self) -> PathBuf {
        self.directory.path().join("the model")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.model().join(name)
    }

    fn put(&self, name: &str, content: &[u8]) {
        fs::create_dir_all(self.model()).unwrap();
        fs::write(self.file(name), content).unwrap();
    }

    fn command(&self, server: &Server, arguments: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.arg(SCRIPT).arg("--dir").arg(self.model()).args(arguments);
        for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN"] {
            command.env_remove(name);
        }
        if let Some(token) = self.token {
            command.env("HF_TOKEN", token);
        }
        if let Some(first) = &self.path_first {
            command.env("PATH", format!("{}:{}", first.display(), std::env::var("PATH").unwrap()));
        }
        command
            .env("HOME", self.directory.path())
            .env("HF_ENDPOINT", &server.endpoint)
            .env("VOX_DOWNLOAD_TOOL", self.tool)
            .env("VOX_DOWNLOAD_BACKOFF", "0")
            .stdin(Stdio::null());
        command
    }

    fn output(&self, server: &Server, arguments: &[&str]) -> Output {
        self.command(server, arguments).output().unwrap()
    }

    #[track_caller]
    fn succeeds(&self, server: &Server) -> String {
        let output = self.output(server, &[]);
        assert!(output.status.success(), "{}: {}", self.tool, text(&output));
        assert_eq!(fs::read(self.file("params.json")).unwrap(), PARAMS);
        assert_eq!(fs::read(self.file("tekken.json")).unwrap(), tekken());
        assert!(fs::read(self.file(WEIGHTS)).unwrap() == weights(), "{}: wrong weights", self.tool);
        let left: Vec<_> = self.names().into_iter().filter(|name| name.ends_with(".part")).collect();
        assert!(left.is_empty(), "{left:?}");
        text(&output)
    }

    /// Fails with `message`, and the directory has no weights.
    #[track_caller]
    fn fails(&self, server: &Server, message: &str) -> String {
        let output = self.output(server, &[]);
        let text = text(&output);
        assert_eq!(output.status.code(), Some(1), "{}: {text}", self.tool);
        assert!(text.contains(message), "{}: {message:?} is not in: {text}", self.tool);
        assert!(!self.file(WEIGHTS).exists(), "{}: weights after a failure", self.tool);
        text
    }

    fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.model()) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

// ---- the cases ----

#[test]
fn downloads_and_verifies_a_model() {
    for tool in tools() {
        let server = Server::start(|request, _| healthy(request));
        let run = Run::new(tool);
        let text = run.succeeds(&server);
        assert!(text.contains(": ready"), "{text}");
        let sums = fs::read_to_string(run.file("SHA256SUMS")).unwrap();
        assert!(sums.contains(&format!("{WEIGHTS_SHA256}  {WEIGHTS}\n")), "{sums}");
        assert!(
            sums.contains(&format!("{TEKKEN_SHA256}  tekken.json\n")) && sums.contains("  params.json\n"),
            "{sums}"
        );
        assert!(server.requests().iter().all(|r| r.authorization.is_none()));
    }
}

#[test]
fn a_plain_tekken_file_is_compared_with_the_repository_text() {
    for tool in tools() {
        let server = healthy_but(raw("tekken.json"), |_, _| Reply::new(200, tekken()));
        Run::new(tool).succeeds(&server);

        let server = Server::start(|request, _| match &request.path {
            path if *path == raw("tekken.json") => Reply::new(200, tekken()),
            path if *path == resolve("tekken.json") => Reply::new(200, vec![b' '; tekken().len()]),
            _ => healthy(request),
        });
        let run = Run::new(tool);
        run.fails(&server, "not the text that the repository has");
        assert_eq!(run.names(), ["params.json"]);
    }
}

#[test]
fn broken_connections_are_continued() {
    for tool in tools() {
        let server = healthy_but(resolve(WEIGHTS), |request, nth| Reply {
            cut: (request.method == "GET" && nth < 8).then_some(30_000),
            ..healthy(request)
        });
        Run::new(tool).succeeds(&server);
        // More breaks than tries: bytes that arrive reset the count.
        let starts = server.weight_gets();
        assert_eq!(starts.len(), 9, "{tool}: {starts:?}");
        assert_eq!(starts[0], None);
        assert!(starts.windows(2).all(|pair| pair[1].unwrap() > pair[0].unwrap_or(0)), "{tool}: {starts:?}");
    }
}

#[test]
fn a_server_that_is_busy_is_asked_again() {
    for tool in tools() {
        let server = healthy_but(resolve(WEIGHTS), |request, nth| match (request.method.as_str(), nth) {
            ("HEAD", 0) => Reply::new(429, *b"Slow down"),
            ("GET", 0) => Reply::new(503, *b"Later"),
            _ => healthy(request),
        });
        let text = Run::new(tool).succeeds(&server);
        assert!(text.contains("HTTP 429; trying again in 0 s"), "{text}");
        assert!(text.contains("HTTP 503; trying again in 0 s"), "{text}");
    }
}

#[test]
fn a_server_that_stays_broken_is_given_up_and_the_part_kept() {
    for tool in tools() {
        let server = healthy_but(resolve(WEIGHTS), |request, nth| match nth {
            0 => Reply { cut: Some(50_000), ..healthy(request) },
            _ if request.method == "GET" => Reply::new(500, *b"Broken"),
            _ => healthy(request),
        });
        let run = Run::new(tool);
        run.fails(&server, "gave up after 6 tries");
        assert_eq!(fs::read(run.file(&format!("{WEIGHTS}.part"))).unwrap(), weights()[..50_000]);

        // The next run continues.
        let server = Server::start(|request, _| healthy(request));
        let text = run.succeeds(&server);
        assert!(text.contains("continuing after 50000 of 400000 bytes"), "{text}");
        assert_eq!(server.weight_gets(), [Some(50_000)]);
    }
}

#[test]
fn an_interrupt_keeps_the_part() {
    for tool in tools() {
        let server =
            healthy_but(resolve(WEIGHTS), |request, _| Reply { pause: Duration::from_millis(200), ..healthy(request) });
        let run = Run::new(tool);
        let part = run.file(&format!("{WEIGHTS}.part"));
        let script = run.command(&server, &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while fs::metadata(&part).map_or(0, |m| m.len()) < 20_000 {
            assert!(Instant::now() < deadline, "{tool}: nothing arrives");
            thread::sleep(Duration::from_millis(10));
        }
        let killed = Command::new("kill").args(["-INT", &script.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let output = script.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{tool}: {}", text(&output));
        assert!(text(&output).contains("start it again to continue"));
        assert!(!run.file(WEIGHTS).exists());
        let length = fs::metadata(&part).unwrap().len() as usize;
        assert!((20_000..400_000).contains(&length), "{tool}: {length}");

        let server = Server::start(|request, _| healthy(request));
        run.succeeds(&server);
        assert_eq!(server.weight_gets(), [Some(length)]);
    }
}

#[test]
fn a_wrong_file_is_rejected_and_removed() {
    for tool in tools() {
        // The same size, one byte wrong.
        let server = healthy_but(resolve(WEIGHTS), |_, _| {
            let mut body = weights();
            body[200_000] ^= 1;
            Reply::new(200, body)
        });
        let run = Run::new(tool);
        run.fails(&server, &format!("instead of {WEIGHTS_SHA256}"));
        let mut names = run.names();
        names.sort();
        assert_eq!(names, ["params.json", "tekken.json"]);

        // A login page.
        let server = healthy_but(resolve(WEIGHTS), |_, _| Reply::new(200, HTML));
        let text = run.fails(&server, "bytes instead of 400000");
        assert!(text.contains("it is a web page"), "{text}");
        assert_eq!(run.names().len(), 2);

        // Afterwards nothing of this is in the way.
        run.succeeds(&Server::start(|request, _| healthy(request)));
    }
}

#[test]
fn a_part_of_another_version_is_thrown_away() {
    for tool in tools() {
        let server = Server::start(|request, _| healthy(request));
        let run = Run::new(tool);
        run.put(&format!("{WEIGHTS}.part"), &[7; 1000]);
        let text = run.succeeds(&server);
        assert!(text.contains("starting again"), "{text}");
        assert_eq!(server.weight_gets(), [Some(1000), None]);

        // One that is longer than the file can be.
        let run = Run::new(tool);
        run.put(&format!("{WEIGHTS}.part"), &[7; 500_000]);
        run.succeeds(&Server::start(|request, _| healthy(request)));
    }
}

#[test]
fn a_login_page_does_not_cost_the_part() {
    for tool in tools() {
        let server = healthy_but(resolve(WEIGHTS), |_, _| Reply { ranges: false, ..Reply::new(200, HTML) });
        let run = Run::new(tool);
        run.put(&format!("{WEIGHTS}.part"), &weights()[..100_000]);
        run.fails(&server, "gave up after 6 tries");
        assert_eq!(fs::read(run.file(&format!("{WEIGHTS}.part"))).unwrap(), weights()[..100_000]);
    }
}

#[test]
fn a_server_that_ignores_ranges_does_no_harm() {
    for tool in tools() {
        let server = healthy_but(resolve(WEIGHTS), |request, nth| Reply {
            ranges: false,
            cut: (request.method == "GET" && nth == 0).then_some(100_000),
            ..healthy(request)
        });
        Run::new(tool).succeeds(&server);
        assert!(server.weight_gets().contains(&Some(100_000)), "{tool}: {:?}", server.weight_gets());
    }
}

#[test]
fn a_missing_repository_or_revision_is_named() {
    for tool in tools() {
        let server = Server::start(|_, _| Reply::new(404, HTML));
        let run = Run::new(tool);
        run.fails(&server, "not found (HTTP 404)");
        assert!(run.names().is_empty(), "{:?}", run.names());

        let server = Server::start(|request, _| healthy(request));
        let output = run.output(&server, &["--revision", "no-such"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output).contains("is the revision 'no-such' right"), "{}", text(&output));
    }
}

#[test]
fn a_token_is_asked_for_and_used() {
    for tool in tools() {
        let server = Server::start(|request, _| match request.authorization.as_deref() {
            Some("Bearer hf_right") => healthy(request),
            Some(_) => Reply::new(403, HTML),
            None => Reply::new(401, HTML),
        });
        let mut run = Run::new(tool);
        run.fails(&server, "HTTP 401): set HF_TOKEN");
        run.token = Some("hf_wrong");
        run.fails(&server, "HTTP 403), although HF_TOKEN is set");
        run.token = Some("hf_right");
        run.succeeds(&server);
    }
}

#[test]
fn the_token_never_reaches_another_server_or_a_command_line() {
    for tool in tools() {
        // The store behind the endpoint is another host name in one round, another port in the other.
        for host in ["127.0.0.1", "localhost"] {
            let store = Server::start(|request, nth| Reply {
                cut: (request.method == "GET" && nth == 0).then_some(150_000),
                ..Reply::new(200, weights())
            });
            let address = store.endpoint.replace("127.0.0.1", host);
            let relative = format!("{REPOSITORY}/resolve/0123abc/{WEIGHTS}");
            let server = Server::start(move |request, _| match &request.path {
                path if *path == resolve(WEIGHTS) => Reply::redirect(relative.clone()),
                path if *path == relative => Reply::redirect(format!("{address}/blob?sign=[a]&x=%2F")),
                _ => healthy(request),
            });
            let mut run = Run::new(tool);
            run.token = Some("hf_secret");
            let bin = run.directory.path().join("bin");
            let log = run.directory.path().join("arguments");
            spy(&bin, tool, &log);
            run.path_first = Some(bin);
            run.succeeds(&server);

            let gets: Vec<_> = store.requests().into_iter().filter(|r| r.method == "GET").collect();
            assert_eq!(gets.iter().map(|r| r.range_start).collect::<Vec<_>>(), [None, Some(150_000)]);
            assert!(store.requests().iter().all(|r| r.authorization.is_none()), "{tool}: {:?}", store.requests());
            let sent = server.requests();
            assert!(sent.iter().all(|r| r.authorization.as_deref() == Some("Bearer hf_secret")), "{tool}: {sent:?}");
            let arguments = fs::read_to_string(log).unwrap();
            assert!(arguments.contains(WEIGHTS) && !arguments.contains("hf_secret"), "{arguments}");
        }
    }
}

/// A program of the tool's name that logs its arguments and runs the real one.
fn spy(bin: &Path, tool: &str, log: &Path) {
    let which = Command::new("sh").args(["-c", "command -v \"$0\"", tool]).output().unwrap();
    let real = String::from_utf8(which.stdout).unwrap();
    fs::create_dir(bin).unwrap();
    let program = bin.join(tool);
    let script = format!("#!/bin/sh\nprintf '%s\\n' \"$@\" >>'{}'\nexec '{}' \"$@\"\n", log.display(), real.trim());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_good_file_is_not_fetched_again() {
    for tool in tools() {
        let server = Server::start(|request, _| healthy(request));
        let run = Run::new(tool);
        run.succeeds(&server);
        let text = run.succeeds(&server);
        assert_eq!(text.matches("already there, verified").count(), 3, "{text}");
        assert_eq!(server.weight_gets().len(), 1);
    }
}

#[test]
fn a_bad_file_is_moved_aside_and_fetched() {
    for tool in tools() {
        let server = Server::start(|request, _| healthy(request));
        let run = Run::new(tool);
        let mut bad = weights();
        bad[0] ^= 1;
        run.put(WEIGHTS, &bad);
        run.put("params.json", HTML);
        let text = run.succeeds(&server);
        assert!(text.contains(&format!("{WEIGHTS}.bad")), "{text}");
        assert!(fs::read(run.file(&format!("{WEIGHTS}.bad"))).unwrap() == bad);
    }
}

#[test]
fn verify_only_checks_and_changes_nothing() {
    for tool in tools() {
        let server = Server::start(|request, _| healthy(request));
        let run = Run::new(tool);
        let output = run.output(&server, &["--verify-only"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert_eq!(text(&output).matches(": missing").count(), 3, "{}", text(&output));
        assert!(!run.model().exists());

        run.succeeds(&server);
        let output = run.output(&server, &["--verify-only"]);
        assert!(output.status.success(), "{}", text(&output));

        run.put(WEIGHTS, b"short");
        let output = run.output(&server, &["--verify-only"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output).contains("5 bytes instead of 400000"), "{}", text(&output));
        assert_eq!(fs::read(run.file(WEIGHTS)).unwrap(), b"short");
        assert_eq!(server.weight_gets().len(), 1);
    }
}

#[test]
fn without_a_pointer_nothing_is_trusted() {
    for tool in tools() {
        let half = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{WEIGHTS_SHA256}\n");
        let cases = [
            (WEIGHTS, HTML.to_vec(), "it is a web page"),
            (WEIGHTS, Vec::new(), "not a Git LFS pointer"),
            (WEIGHTS, half.into_bytes(), "a damaged Git LFS pointer"),
            ("params.json", HTML.to_vec(), "not the JSON file"),
            ("params.json", Vec::new(), "not the JSON file"),
            ("tekken.json", b"{\"vocab\": [".to_vec(), "not the JSON file"),
        ];
        for (name, body, message) in cases {
            let server = healthy_but(raw(name), move |_, _| Reply::new(200, body.clone()));
            let run = Run::new(tool);
            run.fails(&server, message);
            assert!(server.weight_gets().is_empty(), "{tool}: fetched without knowing what to expect");
        }
    }
}

#[test]
fn a_full_disk_is_noticed_before_the_download() {
    for tool in tools() {
        let server = healthy_but(raw(WEIGHTS), |_, _| Reply::new(200, pointer(WEIGHTS_SHA256, 900_000_000_000_000)));
        let run = Run::new(tool);
        run.fails(&server, "not enough disk space");
        assert!(server.weight_gets().is_empty());
    }
}

#[test]
fn wrong_usage_is_explained() {
    let server = Server::start(|request, _| healthy(request));
    let mut run = Run::new(tools()[0]);
    for (arguments, message) in [
        (&["--no-such-option"][..], "unknown argument '--no-such-option'"),
        (&["--revision"], "--revision needs a value"),
        (&["--revision", "../evil x"], "is not a revision"),
        (&["--dir="], "--dir must not be empty"),
    ] {
        let output = run.output(&server, arguments);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(message), "{}", text(&output));
    }
    run.token = Some("two\nlines");
    assert_eq!(run.output(&server, &[]).status.code(), Some(2));
    let output = run.output(&server, &["--help"]);
    assert!(output.status.success() && text(&output).contains("--verify-only"));
    assert!(server.requests().is_empty());
}
