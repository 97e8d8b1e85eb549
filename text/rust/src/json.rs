//! Python's `json.dumps`, which templates know as the filter `tojson`.
//!
//! minijinja's own filter escapes HTML and writes no spaces; the prompt would differ from the one
//! the model was trained with.

use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{Error, ErrorKind};
use serde_json::Value as Json;

struct Style {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort: bool,
}

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`
pub fn tojson(value: Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let argument = |index: usize, name: &str| -> Result<Value, Error> {
        match args.get(index) {
            Some(v) => Ok(v.clone()),
            None => Ok(kwargs.get::<Option<Value>>(name)?.unwrap_or_default()),
        }
    };
    let ascii = argument(0, "ensure_ascii")?.is_true();
    let indent = indent_of(&argument(1, "indent")?)?;
    let separators = argument(2, "separators")?;
    let sort = argument(3, "sort_keys")?.is_true();
    kwargs.assert_all_used()?;

    let (item, key) = if separators.is_undefined() || separators.is_none() {
        let item = if indent.is_some() { "," } else { ", " };
        (item.to_string(), ": ".to_string())
    } else {
        (
            separators.get_item_by_index(0)?.to_string(),
            separators.get_item_by_index(1)?.to_string(),
        )
    };
    if value.is_undefined() {
        return Err(invalid("tojson: the value is undefined"));
    }
    let json = serde_json::to_value(&value).map_err(|e| invalid(&format!("tojson: {e}")))?;
    let style = Style {
        ascii,
        indent,
        item,
        key,
        sort,
    };
    let mut out = String::new();
    write(&mut out, &json, &style, 1);
    Ok(out)
}

fn invalid(detail: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail.to_string())
}

fn indent_of(value: &Value) -> Result<Option<String>, Error> {
    if value.is_undefined() || value.is_none() {
        return Ok(None);
    }
    if let Some(s) = value.as_str() {
        return Ok(Some(s.to_string()));
    }
    match value.as_usize() {
        Some(n) if n <= 64 => Ok(Some(" ".repeat(n))),
        _ => Err(invalid("tojson: indent is not a number of 0 to 64")),
    }
}

fn write(out: &mut String, json: &Json, style: &Style, depth: usize) {
    match json {
        Json::String(s) => write_string(out, s, style),
        Json::Array(list) => {
            let items = list.iter().map(|v| (None, v)).collect();
            write_items(out, ['[', ']'], items, style, depth);
        }
        Json::Object(map) => {
            let mut items: Vec<_> = map.iter().map(|(k, v)| (Some(k), v)).collect();
            if style.sort {
                items.sort_by_key(|(k, _)| *k);
            }
            write_items(out, ['{', '}'], items, style, depth);
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => out.push_str(&json.to_string()),
    }
}

fn write_items(
    out: &mut String,
    brackets: [char; 2],
    items: Vec<(Option<&String>, &Json)>,
    style: &Style,
    depth: usize,
) {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    let empty = items.is_empty();
    out.push(brackets[0]);
    for (i, (key, value)) in items.into_iter().enumerate() {
        if i > 0 {
            out.push_str(&style.item);
        }
        line(out, depth);
        if let Some(key) = key {
            write_string(out, key, style);
            out.push_str(&style.key);
        }
        write(out, value, style, depth + 1);
    }
    if !empty {
        line(out, depth - 1);
    }
    out.push(brackets[1]);
}

fn write_string(out: &mut String, s: &str, style: &Style) {
    let quoted = Json::from(s).to_string();
    if !style.ascii {
        out.push_str(&quoted);
        return;
    }
    for c in quoted.chars() {
        if c.is_ascii() && c != '\x7f' {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}
