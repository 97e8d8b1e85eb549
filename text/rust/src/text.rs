//! One model folder: its tokenizer and its chat template.

use std::path::Path;

use sha2::{Digest, Sha256};
use tokenizers::{AddedToken, Tokenizer};

use crate::chat::Chat;
use crate::files::{read_optional, Config};
use crate::stream::Stages;

pub struct Text {
    tokenizer: Tokenizer,
    chat: Option<Chat>,
    pub hash: String,
    pub vocab_count: u32,
}

impl Text {
    pub fn open(dir: &Path) -> Result<Text, String> {
        let path = dir.join("tokenizer.json");
        let bytes =
            read_optional(&path)?.ok_or_else(|| format!("{} does not exist", path.display()))?;
        let hash = Sha256::digest(&bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let mut tokenizer =
            Tokenizer::from_bytes(&bytes).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut config = Config::read(&dir.join("tokenizer_config.json"))?;
        if let Some(padding) = tokenizer.get_padding() {
            config.default_special("pad_token", &padding.pad_token);
        }
        // Length is the caller's affair: a prompt is never cut or filled up here.
        tokenizer
            .with_truncation(None)
            .map_err(|e| format!("{}: {e}", path.display()))?
            .with_padding(None);
        declare_added(&mut tokenizer, &config)?;
        let vocab = tokenizer.get_vocab(true);
        let last = vocab.values().max().ok_or("tokenizer.json: no tokens")?;
        let vocab_count = last
            .checked_add(1)
            .ok_or("tokenizer.json: a token's id is too large")?;
        Ok(Text {
            chat: open_chat(dir, &config)?,
            tokenizer,
            hash,
            vocab_count,
        })
    }

    pub fn chat(&self) -> Option<&Chat> {
        self.chat.as_ref()
    }

    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    pub fn encode(&self, text: &str, specials: bool) -> Result<Vec<u32>, String> {
        match self.tokenizer.encode_fast(text, specials) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// A token as the decoder takes it; None for specials and for ids that name no token.
    pub fn plain_token(&self, id: u32) -> Option<String> {
        let token = self.tokenizer.id_to_token(id)?;
        let specials = self.tokenizer.get_added_vocabulary();
        (!specials.is_special_token(&token)).then_some(token)
    }

    pub fn stages(&self) -> Stages {
        Stages::new(self.tokenizer.get_decoder())
    }
}

/// Tokens that tokenizer_config.json declares and tokenizer.json does not are declared as transformers
/// does it: those of `added_tokens_decoder` with their flags, those named (eos_token, …) as special.
/// One that the vocabulary lacks is left out: the model has no row for it.
fn declare_added(tokenizer: &mut Tokenizer, config: &Config) -> Result<(), String> {
    let mut tokens = Vec::new();
    for (id, entry) in config.added_tokens() {
        let flag = |name: &str| entry.get(name).and_then(|v| v.as_bool());
        let Some(content) = entry.get("content").and_then(|v| v.as_str()) else {
            return Err(format!(
                "tokenizer_config.json: added_tokens_decoder: {id} has no content"
            ));
        };
        let special = flag("special").unwrap_or(false);
        tokens.push(
            AddedToken::from(content, special)
                .single_word(flag("single_word").unwrap_or(false))
                .lstrip(flag("lstrip").unwrap_or(false))
                .rstrip(flag("rstrip").unwrap_or(false))
                .normalized(flag("normalized").unwrap_or(!special)),
        );
    }
    let named = config.specials().into_iter();
    tokens.extend(named.map(|content| AddedToken::from(content, true)));

    for token in tokens {
        let known = tokenizer.get_added_vocabulary().get_vocab();
        if known.contains_key(&token.content) || tokenizer.token_to_id(&token.content).is_none() {
            continue;
        }
        tokenizer
            .add_tokens([token])
            .map_err(|e| format!("tokenizer_config.json: {e}"))?;
    }
    Ok(())
}

/// chat_template.jinja, else tokenizer_config.json's; a template that cannot be parsed is an error here,
/// before any job needs it.
fn open_chat(dir: &Path, config: &Config) -> Result<Option<Chat>, String> {
    let file = dir.join("chat_template.jinja");
    let own;
    let template = match read_optional(&file)? {
        Some(bytes) => {
            own = String::from_utf8(bytes).map_err(|_| format!("{}: not UTF-8", file.display()))?;
            Some(own.as_str())
        }
        None => config
            .chat_template()
            .map_err(|e| format!("tokenizer_config.json: {e}"))?,
    };
    template.map(|t| Chat::new(t, config)).transpose()
}
