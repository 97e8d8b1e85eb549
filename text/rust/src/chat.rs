//! The chat template: rendered as transformers' `apply_chat_template` renders it.

use std::collections::BTreeMap;
use std::ffi::CString;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{context, Environment, Error, ErrorKind};

use crate::files::{Config, SPECIAL_NAMES};
use crate::json::tojson;
use crate::python;

const NAME: &str = "chat_template";

/// Instructions a template may run, some 0.6 s: the 4,096 messages of a job need half a million.
const FUEL: u64 = 20_000_000;

pub struct Chat {
    env: Environment<'static>,
    specials: BTreeMap<&'static str, String>,
}

pub struct Message<'a> {
    pub role: &'a str,
    pub content: &'a str,
}

impl Chat {
    pub fn new(template: &str, config: &Config) -> Result<Chat, String> {
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| describe(&e))?;
        let mut env = Environment::new();
        env.set_syntax(syntax);
        env.set_fuel(Some(FUEL));
        python::install(&mut env);
        env.add_filter("tojson", tojson);
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", strftime_now);
        env.add_template_owned(NAME, without_generation_tags(template))
            .map_err(|e| describe(&e))?;
        let specials = SPECIAL_NAMES
            .iter()
            .filter_map(|name| Some((*name, config.special(name)?.to_string())))
            .collect();
        Ok(Chat { env, specials })
    }

    pub fn render(&self, messages: &[Message]) -> Result<String, String> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|m| Value::from_pairs([("role", m.role), ("content", m.content)]))
            .collect();
        let values = context! {
            messages,
            tools => Value::from(()),
            documents => Value::from(()),
            add_generation_prompt => true,
            ..Value::from_pairs(self.specials.clone())
        };
        let template = self.env.get_template(NAME).map_err(|e| describe(&e))?;
        template.render(values).map_err(|e| describe(&e))
    }
}

/// The template's own words where it raised, else minijinja's with the line.
fn describe(e: &Error) -> String {
    let mut cause: &dyn std::error::Error = e;
    loop {
        if let Some(Raised(text)) = cause.downcast_ref::<Raised>() {
            return text.clone();
        }
        match cause.source() {
            Some(next) => cause = next,
            None => return format!("chat template: {e}"),
        }
    }
}

#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

fn raise_exception(text: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "the template raised").with_source(Raised(text)))
}

/// Python's `datetime.now().strftime(format)`, which calls the same function of the C library.
fn strftime_now(format: String) -> Result<String, Error> {
    let bad = |what: &'static str| Error::new(ErrorKind::InvalidOperation, what);
    if format.is_empty() {
        return Ok(format);
    }
    let format = CString::new(format).map_err(|_| bad("strftime_now: NUL in the format"))?;
    let mut out = vec![0u8; 1024];
    // SAFETY: `tm` is plain integers and a pointer that localtime_r sets; `out` has the room stated.
    let used = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut tm: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut tm).is_null() {
            return Err(bad("strftime_now: no local time"));
        }
        libc::strftime(out.as_mut_ptr().cast(), out.len(), format.as_ptr(), &tm)
    };
    out.truncate(used);
    String::from_utf8(out).map_err(|_| bad("strftime_now: not UTF-8"))
}

/// `{% generation %}` marks what a trainer learns from and changes no text; minijinja does not know it.
/// An `if` that is always true keeps the marks' white space control.
fn without_generation_tags(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inner = &tag[2..end];
        let name = inner.trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        match name {
            "generation" => out.push_str(&format!("{{%{}%}}", inner.replace(name, "if true"))),
            "endgeneration" => out.push_str(&format!("{{%{}%}}", inner.replace(name, "endif"))),
            _ => out.push_str(&tag[..end + 2]),
        }
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
}
