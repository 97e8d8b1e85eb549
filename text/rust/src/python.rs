//! Where templates mean Python and minijinja's pycompat is not exact: white space (Python counts
//! U+001C to U+001F), line ends, title case, a few methods, and how all but text and numbers is printed.

use minijinja::value::{from_args, Kwargs, Tuple, Value, ValueKind};
use minijinja::{escape_formatter, Environment, Error, ErrorKind, Output, State};
use minijinja_contrib::pycompat;

/// A template has no need to fill lines beyond this.
const FILL_MAX: i64 = 1 << 16;

pub fn install(env: &mut Environment) {
    env.set_unknown_method_callback(method);
    env.set_formatter(print);
    env.add_filter("trim", trim);
    env.add_filter("capitalize", |value: Value| capitalize(&text_of(&value)));
    env.add_filter("string", |value: Value| text_of(&value));
    env.add_filter("join", join);
}

fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None
        | ValueKind::Bool
        | ValueKind::Seq
        | ValueKind::Iterable
        | ValueKind::Map => Ok(out.write_str(&text_of(value))?),
        _ => escape_formatter(out, state, value),
    }
}

/// Python's `str(value)`.
fn text_of(value: &Value) -> String {
    match value.as_str() {
        Some(s) => s.to_string(),
        None => repr(value),
    }
}

/// Python's `repr(value)`.
fn repr(value: &Value) -> String {
    let items = |list: &Value| -> Vec<Value> { list.try_iter().into_iter().flatten().collect() };
    match value.kind() {
        ValueKind::None => "None".into(),
        ValueKind::Bool if value.is_true() => "True".into(),
        ValueKind::Bool => "False".into(),
        ValueKind::String => quote(value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            let inner: Vec<String> = items(value).iter().map(repr).collect();
            match (value.is_tuple(), inner.len()) {
                (true, 1) => format!("({},)", inner[0]),
                (true, _) => format!("({})", inner.join(", ")),
                (false, _) => format!("[{}]", inner.join(", ")),
            }
        }
        ValueKind::Map => {
            let pair = |key: &Value| {
                let item = value.get_item(key).unwrap_or_default();
                format!("{}: {}", repr(key), repr(&item))
            };
            let inner: Vec<String> = items(value).iter().map(pair).collect();
            format!("{{{}}}", inner.join(", "))
        }
        _ => value.to_string(),
    }
}

/// A string as Python writes it in lists: in double quotes only if that saves escapes.
fn quote(s: &str) -> String {
    let mark = if s.contains('\'') && !s.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(mark);
    for c in s.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == mark => out.extend(['\\', c]),
            c if c.is_control() && (c as u32) < 0x100 => {
                out.push_str(&format!("\\x{:02x}", c as u32))
            }
            c => out.push(c),
        }
    }
    out.push(mark);
    out
}

/// The items, or what `attribute` (a path with dots, or an index) names of each, as `str` writes them.
fn join(
    value: &Value,
    by: Option<Value>,
    attribute: Option<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let by = by.map_or_else(|| named.get::<Option<Value>>("d"), |v| Ok(Some(v)))?;
    let attribute =
        attribute.map_or_else(|| named.get::<Option<Value>>("attribute"), |v| Ok(Some(v)))?;
    named.assert_all_used()?;
    let path = attribute.map(|name| text_of(&name));
    let mut out = String::new();
    for (i, mut item) in value.try_iter()?.enumerate() {
        for part in path.iter().flat_map(|path| path.split('.')) {
            let key = part
                .parse::<i64>()
                .map_or_else(|_| Value::from(part), Value::from);
            item = item.get_item(&key)?;
        }
        if let (Some(by), true) = (&by, i > 0) {
            out.push_str(&text_of(by));
        }
        out.push_str(&text_of(&item));
    }
    Ok(out)
}

fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if value.kind() == ValueKind::Seq && name == "index" {
        let (what,): (&Value,) = from_args(args)?;
        let at = value.try_iter()?.position(|item| item == *what);
        return at
            .map(Value::from)
            .ok_or_else(|| raised("the list has no such item"));
    }
    let Some(s) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, name, args);
    };
    match (name, args.len()) {
        ("strip", 0) => Ok(s.trim_matches(is_space).into()),
        ("lstrip", 0) => Ok(s.trim_start_matches(is_space).into()),
        ("rstrip", 0) => Ok(s.trim_end_matches(is_space).into()),
        ("split", 0) => Ok(words(s).map(Value::from).collect()),
        ("isspace", 0) => Ok((!s.is_empty() && s.chars().all(is_space)).into()),
        ("title", 0) => Ok(title(s).into()),
        ("capitalize", 0) => Ok(capitalize(s).into()),
        ("casefold", 0) => Ok(s.to_lowercase().replace('ß', "ss").into()),
        ("swapcase", 0) => Ok(swap_case(s).into()),
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
        ("partition" | "rpartition", 1) => {
            let (by,): (&str,) = from_args(args)?;
            partition(s, by, name == "rpartition")
        }
        ("rsplit", 1 | 2) => {
            let (by, most): (&str, Option<i64>) = from_args(args)?;
            rsplit(s, by, most.unwrap_or(-1))
        }
        ("find" | "rfind" | "index" | "rindex", 1..=3) => find(s, name, args),
        ("zfill" | "ljust" | "rjust" | "center", 1 | 2) => fill(s, name, args),
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn raised(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

fn partition(s: &str, by: &str, last: bool) -> Result<Value, Error> {
    if by.is_empty() {
        return Err(raised("partition: the separator is empty"));
    }
    let parts = match if last {
        s.rsplit_once(by)
    } else {
        s.split_once(by)
    } {
        Some((before, after)) => [before, by, after],
        None if last => ["", "", s],
        None => [s, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

fn rsplit(s: &str, by: &str, most: i64) -> Result<Value, Error> {
    if by.is_empty() {
        return Err(raised("rsplit: the separator is empty"));
    }
    let most = usize::try_from(most).map_or(usize::MAX, |n| n.saturating_add(1));
    let mut parts: Vec<&str> = s.rsplitn(most, by).collect();
    parts.reverse();
    Ok(parts.into_iter().map(Value::from).collect())
}

/// find, rfind, index, rindex: in characters, with Python's optional start and end.
fn find(s: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let count = s.chars().count() as i64;
    let bound = |n: i64| if n < 0 { (n + count).max(0) } else { n };
    let start = bound(start.unwrap_or(0));
    let end = bound(end.unwrap_or(count)).min(count);
    let mut found = None;
    if start <= end {
        let (skip, take) = (start as usize, (end - start) as usize);
        let part: String = s.chars().skip(skip).take(take).collect();
        let at = if name.starts_with('r') {
            part.rfind(what)
        } else {
            part.find(what)
        };
        found = at.map(|at| start + part[..at].chars().count() as i64);
    }
    match found {
        Some(at) => Ok(at.into()),
        None if name.ends_with("find") => Ok((-1).into()),
        None => Err(raised("substring not found")),
    }
}

/// zfill, ljust, rjust, center.
fn fill(s: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, with): (i64, Option<char>) = from_args(args)?;
    let count = s.chars().count() as i64;
    let room = (width - count).max(0);
    if width > FILL_MAX {
        return Err(raised("the width is too large"));
    }
    let with = with.unwrap_or(if name == "zfill" { '0' } else { ' ' });
    let before = match name {
        "ljust" => 0,
        "center" => room / 2 + (room & width & 1),
        _ => room,
    };
    let pad = |n: i64| String::from(with).repeat(n as usize);
    let sign = if name == "zfill" && s.starts_with(['+', '-']) {
        1
    } else {
        0
    };
    let (sign, rest) = s.split_at(sign);
    Ok(format!("{sign}{}{rest}{}", pad(before), pad(room - before)).into())
}

fn swap_case(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        if c.is_uppercase() {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
    }
    out
}

fn trim(value: Value, chars: Option<String>) -> String {
    let text = text_of(&value);
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

/// A letter after anything that has no case is title case, the others are lower case.
fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut inside = false;
    for c in s.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            push_title(&mut out, c);
        }
        inside = c.is_uppercase() || c.is_lowercase() || is_digraph(c);
    }
    out
}

fn capitalize(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut chars = s.chars();
    if let Some(first) = chars.next() {
        push_title(&mut out, first);
    }
    out.push_str(&chars.as_str().to_lowercase());
    out
}

/// Title case is upper case but for the digraphs, Georgian, and letters whose upper case is several.
fn push_title(out: &mut String, c: char) {
    match c {
        'Ǆ'..='ǆ' => out.push('ǅ'),
        'Ǉ'..='ǉ' => out.push('ǈ'),
        'Ǌ'..='ǌ' => out.push('ǋ'),
        'Ǳ'..='ǳ' => out.push('ǲ'),
        'ა'..='ჿ' => out.push(c),
        _ => {
            let mut upper = c.to_uppercase();
            out.extend(upper.next());
            out.extend(upper.flat_map(char::to_lowercase)); // ß -> Ss
        }
    }
}

/// One of the title-case letters ǅ, ǈ, ǋ, ǲ, which are neither upper nor lower case.
fn is_digraph(c: char) -> bool {
    matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ')
}
