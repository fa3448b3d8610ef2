//! `weir apply`: the VIPs of a file become those of a balancer.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use node::config::services;
use node::config::services::raw::{Services, Vip};

use crate::cli::{ApplyArgs, Form};
use crate::get::{ask, pretty, put};
use crate::output::{complain, print};

const PATH: &str = "/v1/vips";

pub(crate) fn apply(args: &ApplyArgs) -> anyhow::Result<()> {
    let vips = match services::load(&args.file, None) {
        Ok(vips) => vips.into_iter().map(|vip| vip.written).collect(),
        Err(error) => {
            complain(&error.to_string());
            bail!("{} is wrong, nothing was changed", args.file.display());
        }
    };
    let before: Services = serde_json::from_value(ask(&args.client, PATH, &[])?)
        .context("the answer is not a list of VIPs; is it a balancer?")?;
    // What was compared is what is replaced: a change in between is a conflict.
    let wanted = Services { generation: before.generation, vips };
    let query = [("dry_run", args.dry_run.to_string())];
    let answer = put(&args.client, PATH, &query, &wanted)?;
    if args.client.output == Form::Json {
        return Ok(print(&pretty(&answer)?)?);
    }
    Ok(print(&differences(&before.vips, &wanted.vips, args.dry_run))?)
}

fn differences(before: &[Vip], after: &[Vip], dry_run: bool) -> String {
    let by_name = |vips: &[Vip]| -> BTreeMap<String, Vip> {
        vips.iter().map(|vip| (vip.name.clone(), Vip { generation: None, ..vip.clone() })).collect()
    };
    let (before, after) = (by_name(before), by_name(after));
    let mut text = String::new();
    let would = if dry_run { "would be " } else { "" };
    for (name, vip) in &after {
        let what = match before.get(name) {
            None => "made",
            Some(old) if old != vip => "changed",
            Some(_) => continue,
        };
        let _ = writeln!(text, "{name}: {would}{what}");
    }
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        let _ = writeln!(text, "{name}: {would}removed");
    }
    if text.is_empty() { "nothing to change\n".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_by_name() {
        let vip = |name: &str, port| Vip { name: name.into(), port, generation: Some(7), ..Vip::default() };
        let before = [vip("a", 1), vip("b", 1), vip("c", 1)];
        let after = [Vip { generation: None, ..vip("a", 1) }, vip("b", 2), vip("d", 1)];
        assert_eq!(differences(&before, &after, false), "b: changed\nd: made\nc: removed\n");
        assert_eq!(differences(&before, &before, false), "nothing to change\n");
        assert_eq!(differences(&[], &after[..1], true), "a: would be made\n");
    }
}
