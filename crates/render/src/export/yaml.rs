//! YAML from JSON values: block style, keys in one order, strings quoted where a reader could take them for something else.

use std::fmt::Write;

use serde_json::Value;

/// Keys that come first, in this order; the others follow by name.
const FIRST: [&str; 5] = ["apiVersion", "kind", "name", "metadata", "image"];
/// Plain words that are no strings to some reader of YAML 1.1 or 1.2.
const RESERVED: [&str; 11] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n", "nan", "inf"];

/// `header` (lines of comment), then the documents.
pub(super) fn documents(header: &str, documents: &[Value]) -> String {
    let mut out = header.to_owned();
    for (index, document) in documents.iter().enumerate() {
        if index > 0 {
            out.push_str("---\n");
        }
        block(document, 0, &mut out);
    }
    out
}

/// A value that starts at the beginning of a line.
fn block(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_by_key(|key| (FIRST.iter().position(|it| it == key).unwrap_or(FIRST.len()), *key));
            for key in keys {
                pad(indent, out);
                let _ = write!(out, "{}:", scalar(key));
                after_key(&map[key], indent, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut text = String::new();
                block(item, indent + 2, &mut text);
                pad(indent, out);
                // The item's own first line takes the place behind the dash.
                let _ = write!(out, "- {}", text.trim_start_matches(' '));
            }
        }
        _ => {
            pad(indent, out);
            out.push_str(flow(value).trim_start());
            out.push('\n');
        }
    }
}

/// A value behind `key:`.
fn after_key(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            block(value, indent + 2, out);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            block(value, indent, out);
        }
        Value::String(text) if is_literal(text) => {
            out.push_str(" |\n");
            for line in text.lines() {
                if !line.is_empty() {
                    pad(indent + 2, out);
                    out.push_str(line);
                }
                out.push('\n');
            }
        }
        _ => {
            out.push_str(&flow(value));
            out.push('\n');
        }
    }
}

/// Whether `text` reads well, and the same, as a literal block.
fn is_literal(text: &str) -> bool {
    let odd = |c: char| {
        c != '\n' && (c.is_control() || matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}' | '\u{feff}'))
    };
    text.lines().count() > 1
        && text.ends_with('\n')
        && !text.ends_with("\n\n")
        && !text.starts_with([' ', '\n'])
        && !text.contains(odd)
}

fn flow(value: &Value) -> String {
    match value {
        Value::Object(_) => " {}".into(),
        Value::Array(_) => " []".into(),
        Value::String(text) => format!(" {}", scalar(text)),
        other => format!(" {other}"),
    }
}

/// A string in one line: plain if nobody can mistake it, else quoted as JSON does.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    // A first letter, behind the dashes of a flag, keeps numbers, dates and markers out.
    let word = text.strip_prefix("--").unwrap_or(text);
    let starts = word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_');
    let reserved = RESERVED.contains(&text.to_ascii_lowercase().as_str());
    let inner = |c: char| plain(c) || "@=$()+,:".contains(c);
    if starts && !reserved && text.chars().all(inner) && text.chars().next_back().is_some_and(plain) {
        return text.to_owned();
    }
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn it_looks_as_one_would_write_it() {
        let value = json!({
            "metadata": {"name": "a", "labels": {"b.dev/c": "1"}}, "kind": "X", "apiVersion": "v1", "empty": {}, "none": [],
            "list": [{"name": "p", "at": 1}, ["x", "y"], "z", {"a": {"b": 1}}], "text": "one\n  two\n\nthree\n", "yes": "no",
        });
        insta::assert_snapshot!(documents("# h\n", &[value, json!([])]), @r##"
        # h
        apiVersion: v1
        kind: X
        metadata:
          name: a
          labels:
            b.dev/c: "1"
        empty: {}
        list:
        - name: p
          at: 1
        - - x
          - "y"
        - z
        - a:
            b: 1
        none: []
        text: |
          one
            two

          three
        "yes": "no"
        ---
        []
        "##);
    }

    fn value() -> impl Strategy<Value = Value> {
        let text =
            prop_oneof!["\\PC*", "[ -~\n\t]{0,12}", "[0-9eE+.:_-]{1,6}", "(~|Yes|NULL|0x1f|<<|=|1_0|.inf)"];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            text.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, move |inner| {
            let key = text.clone();
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(key, inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_the_same(value in value()) {
            let text = documents("# h\n", std::slice::from_ref(&value));
            let read: Value = serde_saphyr::from_str(&text).map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
            prop_assert_eq!(read, value, "{}", text);
        }
    }
}
