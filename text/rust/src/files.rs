//! What is read from the model folder besides the tokenizer itself.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

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

const ADDED_TOKENS: &str = "added_tokens_decoder";

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
    /// Older folders have their special tokens in special_tokens_map.json: as in transformers it counts,
    /// and goes first, where tokenizer_config.json has no `added_tokens_decoder`.
    pub fn read(dir: &Path) -> Result<Config, String> {
        let mut map = read_object(&dir.join("tokenizer_config.json"))?;
        if !map.contains_key(ADDED_TOKENS) {
            map.extend(read_object(&dir.join("special_tokens_map.json"))?);
        }
        Ok(Config(map))
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

    /// The tokens that the configuration gives a special name, with their flags.
    pub fn named_specials(&self) -> Vec<AddedToken> {
        let own = SPECIAL_NAMES.iter().filter_map(|name| self.0.get(*name));
        let more = self
            .extra()
            .flat_map(|v| v.as_object())
            .flat_map(|o| o.values());
        own.chain(more)
            .filter_map(|v| added_token(v, true))
            .collect()
    }

    /// The tokens that it lists as special.
    pub fn listed_specials(&self) -> Vec<AddedToken> {
        let all = self.extra().flat_map(|v| v.as_array()).flatten();
        all.filter_map(|v| added_token(v, true)).collect()
    }

    fn extra(&self) -> impl Iterator<Item = &Value> {
        ["additional_special_tokens", "extra_special_tokens"]
            .iter()
            .filter_map(|name| self.0.get(*name))
    }

    /// The entries of `added_tokens_decoder` by id; None where there is no such field.
    pub fn added_tokens(&self) -> Result<Option<Vec<AddedToken>>, String> {
        let map = match self.0.get(ADDED_TOKENS) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Object(map)) => map,
            Some(_) => return Err(format!("{ADDED_TOKENS} is not an object")),
        };
        let mut list = Vec::with_capacity(map.len());
        for (key, entry) in map {
            let bad = |what: &str| format!("{ADDED_TOKENS}: {key} {what}");
            let id: u32 = key.parse().map_err(|_| bad("is not a token's id"))?;
            if !entry.is_object() {
                return Err(bad("is not an object"));
            }
            list.push((id, added_token(entry, false).ok_or(bad("has no content"))?));
        }
        list.sort_by_key(|(id, _)| *id);
        Ok(Some(list.into_iter().map(|(_, token)| token).collect()))
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

fn read_object(path: &Path) -> Result<Map<String, Value>, String> {
    let Some(bytes) = read_optional(path)? else {
        return Ok(Map::new());
    };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(format!("{}: not a JSON object", path.display())),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}

/// A token written as a string or as an object with flags; `special` goes over what the object says.
fn added_token(value: &Value, special: bool) -> Option<AddedToken> {
    let flag = |name: &str| value.get(name).and_then(Value::as_bool);
    let special = special || flag("special").unwrap_or(false);
    let token = AddedToken::from(content(value)?, special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .normalized(flag("normalized").unwrap_or(!special));
    Some(token)
}

fn content(value: &Value) -> Option<&str> {
    match value {
        Value::String(s) => Some(s),
        Value::Object(map) => map.get("content")?.as_str(),
        _ => None,
    }
}
