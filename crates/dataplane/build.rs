//! Builds the eBPF objects (`crates/bpf`) with whichever of the two possible toolchains is there.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const TARGET: &str = "bpfel-unknown-none";
const OBJECTS: [&str; 3] = ["weir", "balancer", "bench"];
/// Debian's compiler; it comes with `core` for the target, so no source of the standard library is needed.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// BTF for the loader; accesses that the packet's layout leaves unaligned as single instructions (every kernel weir
/// runs on verifies them); the instruction set of kernel 5.1 and later.
const RUSTFLAGS: [&str; 8] = [
    "-C",
    "debuginfo=2",
    "-C",
    "link-arg=--btf",
    "-C",
    "target-cpu=v3",
    "-C",
    "link-arg=--cpu-features=+allows-misaligned-mem-access",
];

/// What the outer cargo sets for the host's build and must not reach the target's.
const OUTER: [&str; 8] = [
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let crates = manifest_dir.parent().ok_or("the crate has no parent directory")?;
    for watched in ["bpf/src", "bpf/Cargo.toml", "bpf/Cargo.lock", "bpf-abi/src", "bpf-abi/Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", crates.join(watched).display());
    }
    let root = crates.parent().ok_or("the crates directory has no parent")?;
    let path = search_path(root);
    let linker = path.iter().find(|dir| dir.join("bpf-linker").is_file());
    let toolchain = debian().or_else(nightly);
    let (Some(_), Some(mut cargo)) = (linker, toolchain) else {
        return Err(missing(linker.is_some()));
    };
    let target_dir = out_dir.join("bpf");
    for name in OUTER {
        cargo.env_remove(name);
    }
    cargo
        .env("PATH", env::join_paths(&path).map_err(|error| error.to_string())?)
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\u{1f}"))
        .args(["build", "--quiet", "--release", "--locked", "--target", TARGET])
        .arg("--manifest-path")
        .arg(crates.join("bpf/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir);
    let status = cargo.status().map_err(|error| format!("{cargo:?}: {error}"))?;
    if !status.success() {
        return Err(format!("the eBPF objects do not build ({status}): {cargo:?}"));
    }
    for object in OBJECTS {
        let built = target_dir.join(TARGET).join("release").join(object);
        let place = out_dir.join(format!("{object}.bpf.o"));
        std::fs::copy(&built, &place).map_err(|error| format!("{}: {error}", built.display()))?;
    }
    Ok(())
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}

/// $PATH, then where `scripts/setup` and where `cargo install` put bpf-linker.
fn search_path(root: &Path) -> Vec<PathBuf> {
    let mut path: Vec<PathBuf> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
    path.push(root.join(".tools/bin"));
    if let Some(home) = env::var_os("HOME") {
        path.push(Path::new(&home).join(".cargo/bin"));
    }
    path
}

/// The outer cargo with Debian's compiler. aya-ebpf uses one unstable feature, hence the bootstrap flag.
fn debian() -> Option<Command> {
    let sysroot = sysroot(Command::new(DEBIAN_RUSTC).args(["--print", "sysroot"]))?;
    if !sysroot.join("lib/rustlib").join(TARGET).is_dir() {
        return None;
    }
    let mut cargo = Command::new(env::var_os("CARGO")?);
    cargo.env("RUSTC_BOOTSTRAP", "1").env("CARGO_BUILD_RUSTC", DEBIAN_RUSTC);
    Some(cargo)
}

/// rustup's nightly, which builds `core` itself.
fn nightly() -> Option<Command> {
    let mut print = Command::new("rustup");
    print.args(["run", "nightly", "rustc", "--print", "sysroot"]);
    let sysroot = sysroot(&mut print)?;
    if !sysroot.join("lib/rustlib/src/rust/library").is_dir() {
        return None;
    }
    let mut cargo = Command::new("rustup");
    cargo.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    cargo.args(["run", "nightly", "cargo", "-Zbuild-std=core"]);
    Some(cargo)
}

fn sysroot(print: &mut Command) -> Option<PathBuf> {
    let output = print.env_remove("RUSTUP_TOOLCHAIN").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(text.trim_end()))
}

fn missing(linker: bool) -> String {
    let what = if linker { "no compiler for bpfel-unknown-none" } else { "no bpf-linker" };
    format!(
        "weir's eBPF programs cannot be built: {what} was found. Either way leads there:\n\
         - Debian 12: scripts/setup (rustc-web and libstd-rust-web-dev-bpf with apt, bpf-linker into .tools/bin)\n\
         - elsewhere: rustup toolchain install nightly --component rust-src && cargo install bpf-linker\n\
         bpf-linker is looked for in $PATH, .tools/bin and ~/.cargo/bin."
    )
}
