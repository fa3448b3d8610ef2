//! The arrows between crates: whoever adds one changes this table, and says why in the review.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

/// Crate, the crates of ours it may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("codec", &[]),
    ("bpf-abi", &[]),
    ("balance", &[]),
    ("lisp", &["codec"]),
    ("dataplane", &["bpf-abi", "balance", "codec"]),
    ("node", &["codec", "lisp", "balance", "dataplane", "bpf-abi"]),
    ("lab", &["codec", "lisp", "balance", "dataplane", "bpf-abi", "node"]),
    ("weir", &["node", "lab", "dataplane"]),
    ("house", &[]),
];

/// Pure crates may use these crates of others and nothing else: no runtime, no sockets, no clock, no randomness.
const PURE: &[(&str, &[&str])] = &[
    ("codec", &["thiserror"]),
    ("bpf-abi", &["aya"]),
    ("balance", &["thiserror", "libm"]),
    ("lisp", &["thiserror", "hmac", "sha1", "sha2", "hkdf", "subtle", "zeroize"]),
];

#[test]
fn crates_use_only_what_their_arrows_allow() -> Result<()> {
    let members = dependencies()?;
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(name, to)| (*name, to.iter().copied().collect())).collect();
    for (name, uses) in &members {
        let allowed = allowed.get(name.as_str()).with_context(|| format!("{name} has no row in ARROWS"))?;
        for used in uses.iter().filter(|used| members.contains_key(*used)) {
            assert!(allowed.contains(used.as_str()), "{name} must not depend on {used}");
        }
    }
    Ok(())
}

#[test]
fn pure_crates_use_only_pure_crates() -> Result<()> {
    let members = dependencies()?;
    for (name, allowed) in PURE {
        let uses = members.get(*name).with_context(|| format!("{name} is not in the workspace"))?;
        for used in uses.iter().filter(|used| !members.contains_key(*used)) {
            assert!(allowed.contains(&used.as_str()), "{name} is pure and must not depend on {used}");
        }
    }
    Ok(())
}

/// Normal and build dependencies of every workspace member, by name; dev-dependencies are free.
fn dependencies() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .context("cargo metadata")?;
    anyhow::ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    packages.iter().map(package_dependencies).collect()
}

fn package_dependencies(package: &Value) -> Result<(String, BTreeSet<String>)> {
    let name = package["name"].as_str().context("name")?.to_owned();
    let uses = package["dependencies"].as_array().context("dependencies")?;
    let uses = uses.iter().filter(|d| d["kind"].as_str() != Some("dev"));
    let uses = uses.filter_map(|d| d["name"].as_str().map(str::to_owned)).collect();
    Ok((name, uses))
}
