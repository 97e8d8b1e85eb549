//! What is read from the model folder besides the tokenizer itself.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::{Map, Value};

/// The largest tokenizer.json known has 35 MB; a file beyond this is not a tokenizer.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// The names under which a configuration declares its special tokens; templates see them by these.
pub const SPECIAL_NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Reads a whole file; `None` when there is no such file.
pub fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, String> {
    let fail = |what: &str, e: std::io::Error| format!("{what} {}: {e}", path.display());
    match fs::metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(fail("open", e)),
        // Opening a pipe would wait for its writer.
        Ok(m) if !m.is_file() => return Err(format!("{} is not a file", path.display())),
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| fail("open", e))?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| fail("read", e))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!(
            "{} is larger than {FILE_BYTES_MAX} bytes",
            path.display()
        ));
    }
    Ok(Some(bytes))
}

/// tokenizer_config.json, or an empty one.
pub struct Config(Map<String, Value>);

impl Config {
    pub fn read(path: &Path) -> Result<Config, String> {
        let Some(bytes) = read_optional(path)? else {
            return Ok(Config(Map::new()));
        };
        match serde_json::from_slice(&bytes) {
            Ok(Value::Object(map)) => Ok(Config(map)),
            Ok(_) => Err(format!("{}: not a JSON object", path.display())),
            Err(e) => Err(format!("{}: {e}", path.display())),
        }
    }

    /// A special token's text, written as a string or as `{"content": …}`.
    pub fn special(&self, name: &str) -> Option<&str> {
        content(self.0.get(name)?)
    }

    /// What tokenizer.json says of a special token counts where the configuration is silent.
    pub fn default_special(&mut self, name: &str, content: &str) {
        if self.special(name).is_none() {
            self.0.insert(name.into(), content.into());
        }
    }

    /// All texts that the configuration names as special tokens.
    pub fn specials(&self) -> Vec<&str> {
        let mut all: Vec<&str> = SPECIAL_NAMES
            .iter()
            .filter_map(|n| self.special(n))
            .collect();
        for name in ["additional_special_tokens", "extra_special_tokens"] {
            match self.0.get(name) {
                Some(Value::Array(list)) => all.extend(list.iter().filter_map(content)),
                Some(Value::Object(map)) => all.extend(map.values().filter_map(content)),
                _ => {}
            }
        }
        all
    }

    /// The entries of `added_tokens_decoder`: (id, entry).
    pub fn added_tokens(&self) -> Vec<(u32, &Map<String, Value>)> {
        let Some(Value::Object(map)) = self.0.get("added_tokens_decoder") else {
            return Vec::new();
        };
        let mut list: Vec<_> = map
            .iter()
            .filter_map(|(id, entry)| Some((id.parse().ok()?, entry.as_object()?)))
            .collect();
        list.sort_by_key(|(id, _)| *id);
        list
    }

    /// The template's text: a string, or the entry named "default" of a list.
    pub fn chat_template(&self) -> Result<Option<&str>, String> {
        match self.0.get("chat_template") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(Value::Array(list)) => {
                let default = list.iter().find(|e| e["name"] == "default");
                match default.map(|e| &e["template"]) {
                    None => Ok(None),
                    Some(Value::String(s)) => Ok(Some(s)),
                    Some(_) => Err("chat_template: \"default\" has no template text".into()),
                }
            }
            Some(_) => Err("chat_template: neither a string nor a list".into()),
        }
    }
}

fn content(value: &Value) -> Option<&str> {
    match value {
        Value::String(s) => Some(s),
        Value::Object(map) => map.get("content")?.as_str(),
        _ => None,
    }
}
