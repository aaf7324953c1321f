//! The `voxtral` program. See [`cli`].

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
