//! The age of what a PromQL expression was computed from.
//!
//! An instant query stamps its result with the time of evaluation, and its samples may be as old as the
//! server's lookback (5 minutes unless configured). `timestamp(selector)` tells the time of the sample,
//! but only for a plain selector; of any other expression it is the time of evaluation again. So the
//! selectors are taken out of the expression and asked for.

use thiserror::Error;

/// Why the age of an expression's samples cannot be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AgeUnknown {
    /// It reads no series, so it measures nothing.
    #[error("the query selects no series")]
    NoSelector,
    /// It looks at another time than now.
    #[error("the query looks at another time than now (`{0}`), so it does not measure the present load")]
    OtherTime(&'static str),
    /// Its brackets or quotes do not match.
    #[error("the query has an unmatched bracket or quote")]
    Unbalanced,
}

/// The query for the Unix time of the oldest among the newest samples of all series that `query` reads.
///
/// # Errors
/// [`AgeUnknown`] if it reads none or shifts time.
pub fn timestamp_query(query: &str) -> Result<String, AgeUnknown> {
    let selectors = selectors(query)?;
    // `timestamp()` drops the metric's name and `or` drops what has the labels of the left side: the
    // added label keeps series of two selectors apart.
    let stamps = selectors.iter().enumerate().map(|(i, selector)| {
        format!("label_replace(timestamp({selector}), \"weir_selector\", \"{i}\", \"\", \"\")")
    });
    let stamps: Vec<String> = stamps.collect();
    if stamps.is_empty() {
        return Err(AgeUnknown::NoSelector);
    }
    Ok(format!("min({})", stamps.join(" or ")))
}

/// Words that may stand where a metric's name could, without being one.
const WORDS: [&str; 14] = [
    "and",
    "or",
    "unless",
    "bool",
    "inf",
    "nan",
    "start",
    "end",
    "on",
    "ignoring",
    "by",
    "without",
    "group_left",
    "group_right",
];
/// Of these, the ones whose parenthesis holds label names.
const LABEL_LISTS: [&str; 6] = ["on", "ignoring", "by", "without", "group_left", "group_right"];

fn selectors(query: &str) -> Result<Vec<String>, AgeUnknown> {
    let mut found: Vec<String> = Vec::new();
    let mut rest = query;
    while let Some(c) = rest.chars().next() {
        let after = match c {
            '"' | '\'' | '`' => after_quoted(rest)?,
            '#' => rest.find('\n').map_or("", |end| &rest[end..]),
            '@' => return Err(AgeUnknown::OtherTime("@")),
            // A range or a subquery: durations only.
            '[' => rest.find(']').map(|end| &rest[end + 1..]).ok_or(AgeUnknown::Unbalanced)?,
            '{' => {
                let after = after_braces(rest)?;
                push_new(&mut found, &rest[..rest.len() - after.len()]);
                after
            }
            _ if is_name_start(c) => after_word(rest, &mut found)?,
            _ if c.is_ascii_digit() || c == '.' => after_number(rest),
            _ => &rest[c.len_utf8()..],
        };
        rest = after;
    }
    Ok(found)
}

fn after_word<'q>(rest: &'q str, found: &mut Vec<String>) -> Result<&'q str, AgeUnknown> {
    let end = rest.find(|c| !is_name_start(c) && !c.is_ascii_digit()).unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    let lower = word.to_ascii_lowercase();
    let next = after.trim_start();
    if lower == "offset" {
        return Err(AgeUnknown::OtherTime("offset"));
    }
    if LABEL_LISTS.contains(&lower.as_str()) {
        let list = next.strip_prefix('(');
        return list.map_or(Ok(after), |list| {
            list.find(')').map(|end| &list[end + 1..]).ok_or(AgeUnknown::Unbalanced)
        });
    }
    // A name before `(`, or before the labels that an aggregation may put first, is a function.
    let aggregates = ["by", "without"]
        .iter()
        .any(|w| next.strip_prefix(w).is_some_and(|list| list.trim_start().starts_with('(')));
    if WORDS.contains(&lower.as_str()) || next.starts_with('(') || aggregates {
        return Ok(after);
    }
    if next.starts_with('{') {
        let after = after_braces(next)?;
        push_new(found, &rest[..rest.len() - after.len()]);
        return Ok(after);
    }
    push_new(found, word);
    Ok(after)
}

fn push_new(found: &mut Vec<String>, selector: &str) {
    if !found.iter().any(|known| known == selector) {
        found.push(selector.to_owned());
    }
}

const fn is_name_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_' || c == ':'
}

/// Numbers and durations: `1e3`, `0x1f`, `5m`.
fn after_number(rest: &str) -> &str {
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(rest.len());
    &rest[end..]
}

fn after_quoted(rest: &str) -> Result<&str, AgeUnknown> {
    let mut chars = rest.char_indices();
    let quote = chars.next().map(|(_, c)| c);
    while let Some((i, c)) = chars.next() {
        if Some(c) == quote {
            return Ok(&rest[i + c.len_utf8()..]);
        }
        if c == '\\' && quote != Some('`') {
            chars.next();
        }
    }
    Err(AgeUnknown::Unbalanced)
}

fn after_braces(rest: &str) -> Result<&str, AgeUnknown> {
    let mut inside = rest.strip_prefix('{').ok_or(AgeUnknown::Unbalanced)?;
    while let Some(c) = inside.chars().next() {
        inside = match c {
            '}' => return Ok(&inside[1..]),
            '"' | '\'' | '`' => after_quoted(inside)?,
            _ => &inside[c.len_utf8()..],
        };
    }
    Err(AgeUnknown::Unbalanced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn selectors_are_found_in_expressions() {
        let cases: [(&str, &[&str]); 12] = [
            ("offered", &["offered"]),
            (r#"offered{eid="10.0.0.1/32"}"#, &[r#"offered{eid="10.0.0.1/32"}"#]),
            (r#"sum(offered{eid="a"})"#, &[r#"offered{eid="a"}"#]),
            ("sum by (eid, gateway) (rate(requests_total[2s]))", &["requests_total"]),
            ("sum(rate(requests_total[2s])) without(pod)", &["requests_total"]),
            (r#"{__name__="offered", x=~"}{"}"#, &[r#"{__name__="offered", x=~"}{"}"#]),
            ("a + on(x) group_left(y) b * 1e3", &["a", "b"]),
            ("max_over_time(job:offered:sum[5m:1s])", &["job:offered:sum"]),
            ("a{x=\"1\"} or a{x=\"2\"} or a {x=\"1\"}", &["a{x=\"1\"}", "a{x=\"2\"}", "a {x=\"1\"}"]),
            ("scalar(offered) > bool Inf # offered by the gateway", &["offered"]),
            (r#"label_replace(up, "a\"b", "c", 'd', `e\`)"#, &["up"]),
            ("quantile(0.9, sum by(x)(offered)) unless absent(up)", &["offered", "up"]),
        ];
        for (query, expected) in cases {
            assert_eq!(selectors(query).unwrap(), expected, "{query}");
        }
    }

    #[test]
    fn the_query_for_the_time() {
        let query = timestamp_query("sum(a) + sum(b)").unwrap();
        assert_eq!(
            query,
            "min(label_replace(timestamp(a), \"weir_selector\", \"0\", \"\", \"\") or \
             label_replace(timestamp(b), \"weir_selector\", \"1\", \"\", \"\"))"
        );
    }

    #[test]
    fn what_has_no_age_is_refused() {
        for query in ["vector(1)", "1", "", "time()"] {
            assert_eq!(timestamp_query(query), Err(AgeUnknown::NoSelector), "{query}");
        }
        assert_eq!(timestamp_query("a offset 5m"), Err(AgeUnknown::OtherTime("offset")));
        assert_eq!(timestamp_query("a @ 1"), Err(AgeUnknown::OtherTime("@")));
        for query in ["a{", "a{x=\"}", "rate(a[5m)", "sum by (x"] {
            assert_eq!(timestamp_query(query), Err(AgeUnknown::Unbalanced), "{query}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(query in "[a-z{}\\[\\]()\"'`\\\\#@ é0-9]{0,40}") {
            let _ = timestamp_query(&query);
        }
    }
}
