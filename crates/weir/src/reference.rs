//! The texts of `docs/reference`, made from the code they describe.

mod api;
mod examples;

use std::fmt::Write as _;

use clap::CommandFactory as _;
use node::config::{Section, raw, services};

use crate::cli::Cli;

/// Every file and its text.
pub(crate) fn files() -> [(&'static str, String); 5] {
    [
        ("cli.md", cli()),
        ("config.md", config()),
        ("metrics.md", metrics()),
        ("api.md", api::api()),
        ("balancer-openapi.json", openapi()),
    ]
}

const GENERATED: &str = "<!-- Made from the code: WEIR_UPDATE=1 cargo test -p weir -->\n\n";

fn cli() -> String {
    let mut text = format!("# Command line\n\n{GENERATED}");
    let mut root = Cli::command().term_width(100);
    root.build();
    command(&mut text, "weir", &mut root);
    text
}

fn command(text: &mut String, name: &str, command: &mut clap::Command) {
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = write!(text, "## {name}\n\n```text\n{}\n```\n\n", lines.join("\n").trim_end());
    for sub in command.get_subcommands_mut() {
        if sub.get_name() != "help" && !sub.is_hide_set() {
            let name = format!("{name} {}", sub.get_name());
            self::command(text, &name, sub);
        }
    }
}

fn openapi() -> String {
    let document = node::balancer::openapi::document();
    serde_json::to_string_pretty(&document).expect("a JSON value is JSON") + "\n"
}

fn config() -> String {
    let mut text = format!("# Configuration\n\n{GENERATED}");
    text.push_str(
        "One schema for every role; `weir check FILE` reports everything that is wrong at once. Unknown keys are \
         refused. Relative paths start at the file's directory. Durations are written like `500ms`, `10s`, `5m`. Keys \
         and tokens are only ever named as files, which must have mode 0600.\n\n",
    );
    for section in raw::SECTIONS {
        config_section(&mut text, section);
    }
    text.push_str(
        "# VIPs of a balancer\n\nA document of its own: the file that `balancer.services` names, in TOML, and the bodies of \
         the [API](api.md#balancer), in JSON, with the same keys.\n\n",
    );
    for section in services::raw::SECTIONS {
        config_section(&mut text, section);
    }
    text.push_str("# Examples\n\nWith every default written out; most of it can be left away.\n\n");
    for (title, file) in examples::examples() {
        let _ = write!(text, "## {title}\n\n```toml\n{}```\n\n", file.to_toml());
    }
    let _ = write!(text, "## VIPs of a balancer\n\n```toml\n{}```\n\n", examples::services().to_toml());
    text
}

fn config_section(text: &mut String, section: &Section) {
    let _ = write!(text, "## {}\n\n{}\n\n", section.header, section.doc.trim());
    text.push_str("| key | default | meaning |\n|---|---|---|\n");
    let defaults = (section.defaults)();
    for field in section.fields {
        let default = match defaults.get(field.name) {
            Some(toml::Value::Table(_)) | None => String::new(),
            Some(value) => format!("`{value}`"),
        };
        let _ = writeln!(text, "| `{}` | {default} | {} |", field.name, field.doc.trim());
    }
    text.push('\n');
}

fn metrics() -> String {
    let mut text = format!("# Metrics\n\n{GENERATED}");
    text.push_str(
        "`GET /metrics` of every role, in OpenMetrics text. Labels are bounded by the configuration.\n\n",
    );
    text.push_str("| metric | type | meaning |\n|---|---|---|\n");
    let exposition = node::metrics::encode(&node::metrics::reference());
    let mut help = std::collections::BTreeMap::new();
    let mut types = Vec::new();
    for line in exposition.lines() {
        if let Some((name, words)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            help.insert(name, words);
        } else if let Some(described) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            types.push(described);
        }
    }
    types.sort_unstable();
    for (name, kind) in types {
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let words = help.get(name).map_or("", |words| words.trim_end_matches('.'));
        let _ = writeln!(text, "| `{name}{suffix}` | {kind} | {words} |");
    }
    text
}
