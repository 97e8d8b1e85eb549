//! One model folder: its tokenizer and its chat template.

use std::collections::HashMap;
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
        let mut config = Config::read(dir)?;
        if let Some(padding) = tokenizer.get_padding() {
            config.default_special("pad_token", &padding.pad_token);
        }
        // Length is the caller's affair: a prompt is never cut or filled up here.
        tokenizer
            .with_truncation(None)
            .map_err(|e| format!("{}: {e}", path.display()))?
            .with_padding(None);
        declare_added(&mut tokenizer, &config)
            .map_err(|e| format!("tokenizer_config.json: {e}"))?;
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

/// Tokens that tokenizer_config.json declares are declared as transformers does it: those of
/// `added_tokens_decoder` with their flags, those named (eos_token, …) as special, those listed
/// (additional_special_tokens) as special if they were no added tokens before.
/// One that the vocabulary lacks is left out: the model has no row for it.
fn declare_added(tokenizer: &mut Tokenizer, config: &Config) -> Result<(), String> {
    let declared = config.added_tokens()?;
    // Where a named token has flags of its own, they stand in this list, else in tokenizer.json.
    let mut known = by_content(tokenizer.get_added_tokens_decoder().values());
    let flags = match &declared {
        Some(list) => by_content(list.iter()),
        None => known.clone(),
    };
    known.extend(flags.clone());
    let named = config.named_specials().into_iter().map(|token| {
        let mut token = flags.get(&token.content).cloned().unwrap_or(token);
        token.special = true;
        token
    });
    let mut listed = config.listed_specials();
    listed.retain(|token| !known.contains_key(&token.content));
    let tokens: Vec<AddedToken> = declared
        .into_iter()
        .flatten()
        .chain(listed)
        .chain(named)
        .filter(|token| tokenizer.token_to_id(&token.content).is_some())
        .collect();
    match tokenizer.add_tokens(tokens) {
        Ok(_) => Ok(()),
        Err(e) => Err(e.to_string()),
    }
}

fn by_content<'a>(tokens: impl Iterator<Item = &'a AddedToken>) -> HashMap<String, AddedToken> {
    tokens.map(|t| (t.content.clone(), t.clone())).collect()
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
