//! `weir completions` and `weir docs`: everything that is generated from the command line and the schemas.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::cli::{Cli, CompletionsArgs, DocsArgs};
use crate::{output, reference};

pub(crate) fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "weir", &mut script);
    Ok(output::print(&String::from_utf8(script)?)?)
}

pub(crate) fn docs(args: &DocsArgs) -> anyhow::Result<()> {
    let man = args.directory.join("man");
    fs::create_dir_all(&man).with_context(|| man.display().to_string())?;
    clap_mangen::generate_to(Cli::command(), &man).context("man pages")?;
    write_reference(&args.directory.join("reference"))
}

fn write_reference(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    for (name, text) in reference::files() {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `docs/reference` is what the code says; `WEIR_UPDATE=1 cargo test -p weir` rewrites it.
    #[test]
    fn references_are_up_to_date() {
        let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference"));
        if std::env::var_os("WEIR_UPDATE").is_some() {
            write_reference(directory).unwrap();
        }
        for (name, text) in reference::files() {
            let found = fs::read_to_string(directory.join(name)).unwrap_or_default();
            assert!(
                found == text,
                "docs/reference/{name} is out of date; run: WEIR_UPDATE=1 cargo test -p weir"
            );
        }
    }

    #[test]
    fn man_pages_are_written() {
        let directory = tempfile::tempdir().unwrap();
        docs(&DocsArgs { directory: directory.path().to_owned() }).unwrap();
        let page = fs::read_to_string(directory.path().join("man/weir-gateway.1")).unwrap();
        assert!(page.contains("LISP xTR"), "{page}");
    }
}
