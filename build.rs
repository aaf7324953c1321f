//! Tells the program which commit it was built from, as `VOX_COMMIT`, and compiles the CUDA kernels.
//!
//! nvcc is looked for in `$NVCC`, `$CUDA_HOME`, `$CUDA_PATH`, `$PATH` and `.cuda/` (scripts/install_nvcc.sh). Each
//! `kernels/*.cu` becomes a fatbin in `$OUT_DIR`, and the cfg `cuda_kernels` says that they are there, `hopper_kernels` that
//! some are for compute capability 9.0 alone. `VOX_CUDA_ARCH` narrows the targets, as in `VOX_CUDA_ARCH=86,90`. Without nvcc
//! the build goes on without CUDA, or, with the feature `cuda`, fails.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compute capabilities with machine code of their own; later ones compile the PTX of the first.
const ARCHITECTURES: &str = "80,86,89,90a,100,120";

fn main() {
    commit();
    microphone();
    println!("cargo::rustc-check-cfg=cfg(cuda_kernels)");
    println!("cargo::rustc-check-cfg=cfg(hopper_kernels)");
    println!("cargo::rerun-if-changed=kernels");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "VOX_CUDA_ARCH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    match compile_kernels() {
        Ok(hopper) => {
            println!("cargo::rustc-cfg=cuda_kernels");
            if hopper {
                println!("cargo::rustc-cfg=hopper_kernels");
            }
        }
        Err(reason) if env::var_os("CARGO_FEATURE_CUDA").is_some() => println!("cargo::error={reason}"),
        Err(reason) => println!("cargo::warning=built without CUDA: {reason}"),
    }
}

/// The cfg `microphone` says that cpal is there: where it needs no library of its own, or with the feature `mic`.
fn microphone() {
    println!("cargo::rustc-check-cfg=cfg(microphone)");
    let system = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if env::var_os("CARGO_FEATURE_MIC").is_some() || ["windows", "macos"].contains(&system.as_str()) {
        println!("cargo::rustc-cfg=microphone");
    }
}

fn commit() {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
    };
    for name in ["HEAD", "refs/heads"] {
        // in a linked worktree they are elsewhere, and a path that is not there would mean a build each time
        if let Some(path) = git(&["rev-parse", "--git-path", name]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let commit = git(&["describe", "--always", "--dirty", "--abbrev=10"]);
    println!("cargo::rustc-env=VOX_COMMIT={}", commit.as_deref().unwrap_or("unknown commit"));
}

fn find_nvcc() -> Option<PathBuf> {
    let nvcc = format!("nvcc{}", env::consts::EXE_SUFFIX);
    let of = |name| env::var_os(name).map(|dir| Path::new(&dir).join("bin").join(&nvcc));
    let local = Path::new(&env::var_os("CARGO_MANIFEST_DIR")?).join(".cuda/nvidia/cu13/bin").join(&nvcc);
    let on_path = env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    let places = [env::var_os("NVCC").map(PathBuf::from), of("CUDA_HOME"), of("CUDA_PATH")];
    let mut places = places.into_iter().flatten().chain(on_path.map(|dir| dir.join(&nvcc))).chain([local]);
    places.find(|path| path.is_file())
}

/// Whether those with Hopper's own instructions are among them.
fn compile_kernels() -> Result<bool, String> {
    let nvcc = find_nvcc().ok_or("nvcc was not found; scripts/install_nvcc.sh installs it into .cuda/")?;
    let chosen = env::var("VOX_CUDA_ARCH").unwrap_or_default();
    let architectures = if chosen.trim().is_empty() { ARCHITECTURES } else { chosen.trim() };
    let mut targets = Vec::new();
    let mut hopper = false;
    for arch in architectures.split(',').map(|arch| arch.trim().trim_start_matches("sm_")) {
        // Hopper's own instructions are in a target of their own, which every GPU of that capability runs
        let arch = if arch == "90" { "90a" } else { arch };
        hopper |= arch == "90a";
        targets.push(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    let lowest = architectures.split(',').next().unwrap_or("80").trim().trim_start_matches("sm_").trim_end_matches('a');
    targets.push(format!("-gencode=arch=compute_{lowest},code=compute_{lowest}"));

    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let mut sources: Vec<PathBuf> = std::fs::read_dir("kernels")
        .map_err(|e| format!("kernels/: {e}"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort();
    let recipe = recipe(&nvcc, &targets)?;
    let recipe_path = out.join("kernels.recipe");
    if std::fs::read_to_string(&recipe_path).is_ok_and(|made_by| made_by == recipe) {
        return Ok(hopper);
    }
    let _ = std::fs::remove_file(&recipe_path); // what is there may be replaced in part
    let mut running = Vec::new();
    for source in sources {
        let name = source.file_stem().unwrap_or_default();
        let mut command = Command::new(&nvcc);
        command.args(["-fatbin", "-O3", "-std=c++17", "--compress-mode=size", "--threads=2", "-o"]);
        command.arg(out.join(name).with_extension("fatbin")).args(&targets).arg(&source);
        let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn();
        running.push((source, child.map_err(|e| format!("{}: {e}", nvcc.display()))?));
    }
    for (source, child) in running {
        let output = child.wait_with_output().map_err(|e| e.to_string())?;
        if !output.status.success() {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).trim().replace('\n', " | ");
            return Err(format!("{} could not compile {}: {text}", nvcc.display(), source.display()));
        }
    }
    std::fs::write(recipe_path, recipe).map_err(|e| e.to_string())?;
    Ok(hopper)
}

/// All that the compiled kernels depend on: a new commit alone does not compile them again.
fn recipe(nvcc: &Path, targets: &[String]) -> Result<String, String> {
    let version = Command::new(nvcc).arg("--version").output().map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let mut recipe = format!("{}{targets:?}\n", String::from_utf8_lossy(&version.stdout));
    let mut files: Vec<PathBuf> = std::fs::read_dir("kernels")
        .map_err(|e| format!("kernels/: {e}"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh"))
        .collect();
    files.sort();
    for file in files {
        let text = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        recipe += &format!("{}\n{text}", file.display());
    }
    Ok(recipe)
}
