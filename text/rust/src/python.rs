//! Where templates mean Python and minijinja's pycompat is not exact: white space (Python counts
//! U+001C to U+001F), line ends, title case, and how None, True and False are printed.

use minijinja::value::{from_args, Value, ValueKind};
use minijinja::{escape_formatter, Environment, Error, Output, State};
use minijinja_contrib::pycompat;

pub fn install(env: &mut Environment) {
    env.set_unknown_method_callback(method);
    env.set_formatter(print);
    env.add_filter("trim", trim);
}

fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        _ => return escape_formatter(out, state, value),
    };
    Ok(out.write_str(text)?)
}

fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(s) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, name, args);
    };
    match (name, args.len()) {
        ("strip", 0) => Ok(s.trim_matches(is_space).into()),
        ("lstrip", 0) => Ok(s.trim_start_matches(is_space).into()),
        ("rstrip", 0) => Ok(s.trim_end_matches(is_space).into()),
        ("split", 0) => Ok(words(s).map(Value::from).collect()),
        ("title", 0) => Ok(title(s).into()),
        ("splitlines", 0 | 1) => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            Ok(split_lines(s, keep.unwrap_or(false))
                .into_iter()
                .map(Value::from)
                .collect())
        }
        ("removeprefix", 1) => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(s.strip_prefix(prefix).unwrap_or(s).into())
        }
        ("removesuffix", 1) => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(s.strip_suffix(suffix).unwrap_or(s).into())
        }
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn trim(value: Value, chars: Option<String>) -> String {
    let text = match value.as_str() {
        Some(s) => s.to_string(),
        None => value.to_string(),
    };
    match chars {
        Some(chars) => text.trim_matches(|c| chars.contains(c)).to_string(),
        None => text.trim_matches(is_space).to_string(),
    }
}

fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

fn words(s: &str) -> impl Iterator<Item = &str> {
    s.split(is_space).filter(|word| !word.is_empty())
}

fn split_lines(s: &str, keep: bool) -> Vec<&str> {
    let is_end =
        |c: char| matches!(c, '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = s;
    while let Some(end) = rest.find(is_end) {
        let tail = &rest[end..];
        let next = match tail.chars().next() {
            Some('\r') if tail.starts_with("\r\n") => end + 2,
            Some(c) => end + c.len_utf8(),
            None => end,
        };
        lines.push(&rest[..if keep { next } else { end }]);
        rest = &rest[next..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// A letter after anything that has no case is upper case, the others are lower case.
fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut inside = false;
    for c in s.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            let mut upper = c.to_uppercase();
            out.extend(upper.next());
            out.extend(upper.flat_map(char::to_lowercase)); // ß -> Ss
        }
        inside = c.is_uppercase() || c.is_lowercase();
    }
    out
}
