//! First stage: text to a [`super::raw::File`] or another document, with every misspelt key and every wrong type at once.
//!
//! serde stops at the first error; here the offending value is taken out, noted, and the rest is read again.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use toml::de::{DeTable, DeValue};

use super::Problem;

/// What came of the text.
pub(super) struct Read<T> {
    /// `None` only if the text is not TOML.
    pub(super) file: Option<T>,
    /// What was taken out.
    pub(super) problems: Vec<Problem>,
    /// Line of every key, by path.
    pub(super) lines: BTreeMap<String, usize>,
}

/// A text has at most this many problems; then it is a different kind of file.
const MAX_PROBLEMS: usize = 100;

/// Reads a text.
pub(super) fn read<T: DeserializeOwned>(text: &str) -> Read<T> {
    let at = Lines::of(text);
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let problem = |error: &toml::de::Error| Problem {
            path: String::new(),
            file: None,
            line: error.span().map(|span| at.line(span.start)),
            message: format!("not TOML: {}", error.message()),
        };
        return Read { file: None, problems: errors.iter().map(problem).collect(), lines: BTreeMap::new() };
    }
    let mut lines = BTreeMap::new();
    note_lines(&at, "", document.get_ref(), &mut lines);
    let mut problems = Vec::new();
    let file = text.parse().ok().and_then(|table| deserialize(table, &mut problems));
    Read { file, problems, lines }
}

/// Where the lines of a text end: a document of thousands of VIPs has hundreds of thousands of keys to find.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(end, _)| end).collect())
    }

    /// The line of an octet, from 1.
    fn line(&self, offset: usize) -> usize {
        self.0.partition_point(|end| *end < offset) + 1
    }
}

fn note_lines(at: &Lines, path: &str, table: &DeTable<'_>, lines: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let path =
            if path.is_empty() { key.get_ref().to_string() } else { format!("{path}.{}", key.get_ref()) };
        lines.insert(path.clone(), at.line(key.span().start));
        note_value(at, &path, value.get_ref(), lines);
    }
}

fn note_value(at: &Lines, path: &str, value: &DeValue<'_>, lines: &mut BTreeMap<String, usize>) {
    match value {
        DeValue::Table(table) => note_lines(at, path, table, lines),
        DeValue::Array(array) => {
            for (index, value) in array.iter().enumerate() {
                let path = format!("{path}[{index}]");
                lines.insert(path.clone(), at.line(value.span().start));
                note_value(at, &path, value.get_ref(), lines);
            }
        }
        _ => {}
    }
}

/// A table without the values that do not fit, which are noted.
pub(super) fn deserialize<T: DeserializeOwned>(table: toml::Table, problems: &mut Vec<Problem>) -> Option<T> {
    let mut value = toml::Value::Table(table);
    while problems.len() < MAX_PROBLEMS {
        let error = match serde_path_to_error::deserialize(value.clone()) {
            Ok(file) => return Some(file),
            Err(error) => error,
        };
        let segments: Vec<Segment> = error.path().iter().cloned().collect();
        let message = explain(error.inner().message());
        problems.push(Problem { path: error.path().to_string(), file: None, line: None, message });
        if !take_out(&mut value, &segments) {
            return None;
        }
    }
    None
}

/// Removes the value at the path; an element of an array is replaced, so that the others keep their index.
fn take_out(root: &mut toml::Value, segments: &[Segment]) -> bool {
    let Some((last, parents)) = segments.split_last() else { return false };
    let mut at = root;
    for segment in parents {
        let next = match segment {
            Segment::Map { key } => at.get_mut(key.as_str()),
            Segment::Seq { index } => at.get_mut(*index),
            Segment::Enum { .. } | Segment::Unknown => None,
        };
        let Some(next) = next else { return false };
        at = next;
    }
    match (last, at) {
        (Segment::Map { key }, toml::Value::Table(table)) => table.remove(key).is_some(),
        (Segment::Seq { index }, toml::Value::Array(array)) => replace(array, *index),
        _ => false,
    }
}

/// The replacement has the type of what the list wants: tables want a table and nothing else, words want a text.
fn replace(array: &mut [toml::Value], index: usize) -> bool {
    let Some(value) = array.get_mut(index) else { return false };
    let empty_text = toml::Value::String(String::new());
    *value = if value.is_table() || *value == empty_text {
        // Tried once with a text, or a table where a text belongs: the other one.
        if value.is_table() { empty_text } else { toml::Value::Table(toml::Table::new()) }
    } else {
        empty_text
    };
    true
}

/// serde's words in the operator's language.
fn explain(message: &str) -> String {
    let message = message.trim_end();
    if let Some(rest) = message.strip_prefix("unknown field `")
        && let Some((key, expected)) = rest.split_once('`')
    {
        let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        return match nearest(key, &known) {
            Some(name) => format!("unknown key; did you mean `{name}`?"),
            None => format!("unknown key; known here: {}", known.join(", ")),
        };
    }
    message
        .replace("expected u8", "expected a whole number from 0 to 255")
        .replace("expected u16", "expected a whole number from 0 to 65535")
        .replace("expected u32", "expected a whole number from 0 to 4294967295")
        .replace("expected u64", "expected a whole number from 0 to 9223372036854775807")
        .replace("expected f64", "expected a number")
        .replace("unknown variant", "unknown word")
}

fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let (distance, name) = known.iter().map(|name| (edit_distance(key, name), *name)).min()?;
    (distance <= 1 + key.len() / 4).then_some(name)
}

/// Levenshtein distance, row by row.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::super::raw::File;
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (a, b, distance) in [("", "", 0), ("rloc", "rlocs", 1), ("lisetn", "listen", 2), ("abc", "", 3)] {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
        }
    }

    #[test]
    fn lines_are_counted_from_one() {
        let text = "\na\n\nb";
        let lines: Vec<usize> = (0..=text.len()).map(|offset| Lines::of(text).line(offset)).collect();
        assert_eq!(lines, [1, 2, 2, 3, 4, 4]);
    }

    #[test]
    fn elements_keep_their_index() {
        let read = read::<File>("[gateway]\nrlocs = [1, \"10.0.0.1\", true]\ninterface = [7, { name = 3 }]");
        let paths: Vec<&str> = read.problems.iter().map(|p| p.path.as_str()).collect();
        assert!(paths.contains(&"gateway.rlocs[0]"), "{paths:?}");
        assert!(paths.contains(&"gateway.rlocs[2]"), "{paths:?}");
        assert!(paths.contains(&"gateway.interface[0]"), "{paths:?}");
        assert!(paths.contains(&"gateway.interface[1].name"), "{paths:?}");
    }

    #[test]
    fn syntax_errors_have_their_line() {
        let read = read::<File>("[node]\nname = \nstate_dir = \"x\"\n");
        assert!(read.file.is_none());
        assert_eq!(read.problems[0].line, Some(2), "{:?}", read.problems);
    }
}
