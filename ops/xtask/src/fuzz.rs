//! Feeds the decoders and recovery inputs that libFuzzer finds by coverage, on the stable toolchain.
//!
//! Owns: how the targets are built and run, and where what they find is kept.
//! Never: uses a sanitizer; leaves a crash without the path of its input.
//!
//! The instrumentation is LLVM's own pass, switched on by `RUSTFLAGS`, and libFuzzer comes with a
//! crate: nothing has to be installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Each is a workspace of its own, with a target per file of `src/bin` and a corpus for each.
const WORKSPACES: [&str; 2] = ["protocol/fuzz", "broker/storage/fuzz"];
/// What counts the edges, and lets libFuzzer look into comparisons.
const INSTRUMENTED: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing";
/// One input takes milliseconds, and a hundred megabytes at the very most.
const INPUT_SECONDS_MAX: u32 = 20;
const MEMORY_MEBIBYTES_MAX: u32 = 1_024;
const INPUT_BYTES_MAX: u32 = 4_096;

/// One program that libFuzzer drives.
struct Target {
    name: String,
    program: PathBuf,
    /// The corpus that is part of the project.
    seeds: PathBuf,
}

/// Runs the targets of these names, or all, for `seconds` each.
pub(crate) fn run(
    root: &Path,
    (seconds, seed): (u32, u32),
    names: &[String],
) -> Result<String, String> {
    let out = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let out = out.join("fuzz");
    let mut targets = Vec::new();
    for workspace in WORKSPACES {
        targets.extend(build(&root.join(workspace), &out)?);
    }
    if let Some(unknown) = names.iter().find(|name| targets.iter().all(|t| t.name != **name)) {
        let known: Vec<&str> = targets.iter().map(|target| &*target.name).collect();
        return Err(format!("no target is called {unknown}: there are {}", known.join(", ")));
    }
    targets.retain(|target| names.is_empty() || names.contains(&target.name));
    // A folder that lost its seeds is not part of a clone, and libFuzzer's word for it is obscure.
    if let Some(target) = targets.iter().find(|target| !has_files(&target.seeds)) {
        return Err(format!("{} has no seeds in {}", target.name, target.seeds.display()));
    }
    let mut summary = Vec::new();
    for target in &targets {
        let found = fuzz(target, &out, (seconds, seed))?;
        println!("{found}");
        summary.push(found);
    }
    Ok(format!("{} targets for {seconds} s each: no promise was broken", summary.len()))
}

/// Builds the targets of a workspace. Naming the platform keeps the instrumentation out of build
/// scripts, which could not be linked with it.
fn build(workspace: &Path, out: &Path) -> Result<Vec<Target>, String> {
    let platform = platform()?;
    let mut cargo = Command::new("cargo");
    cargo.current_dir(workspace).env("RUSTFLAGS", INSTRUMENTED);
    cargo.args(["build", "--quiet", "--release", "--locked", "--bins", "--target", &platform]);
    let status = cargo.arg("--target-dir").arg(out).status().map_err(|e| e.to_string())?;
    if !status.success() {
        return Err(format!("{} was not built", workspace.display()));
    }
    let bins = workspace.join("src/bin");
    let listing = fs::read_dir(&bins).map_err(|e| format!("{}: {e}", bins.display()))?;
    let paths = listing.filter_map(|item| Some(item.ok()?.path()));
    let names = paths.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()));
    let mut targets: Vec<Target> = names
        .map(|name| Target {
            program: out.join(&platform).join("release").join(&name),
            seeds: workspace.join("corpus").join(&name),
            name,
        })
        .collect();
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(targets)
}

fn has_files(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut items| items.next().is_some())
}

fn platform() -> Result<String, String> {
    let told = Command::new("rustc").arg("-vV").output().map_err(|e| e.to_string())?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let host = told.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| "rustc does not name its platform".to_owned())
}

/// What is found goes into a corpus of its own, which the next run goes on with.
fn fuzz(target: &Target, out: &Path, (seconds, seed): (u32, u32)) -> Result<String, String> {
    let (grown, broken) = (out.join("corpus").join(&target.name), out.join("broken"));
    for folder in [&grown, &broken] {
        fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let mut command = Command::new(&target.program);
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-seed={seed}"));
    command.arg(format!("-timeout={INPUT_SECONDS_MAX}"));
    command.arg(format!("-rss_limit_mb={MEMORY_MEBIBYTES_MAX}"));
    command.arg(format!("-max_len={INPUT_BYTES_MAX}"));
    command.arg(format!("-artifact_prefix={}/{}-", broken.display(), target.name));
    command.arg("-print_final_stats=1").arg(&grown).arg(&target.seeds);
    let output = command.stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with('#')).collect();
        return Err(format!("{} is broken:\n{}", target.name, lines.join("\n")));
    }
    let number = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(&format!("stat::{name}:")));
        line.map_or_else(|| "?".to_owned(), |number| number.trim().to_owned())
    };
    let edges = said.rsplit_once(" cov: ").and_then(|(_, rest)| rest.split(' ').next());
    let (inputs, speed) = (number("number_of_executed_units"), number("average_exec_per_sec"));
    let name = &target.name;
    Ok(format!("{name}: {inputs} inputs, {speed} a second, {} edges", edges.unwrap_or("?")))
}
