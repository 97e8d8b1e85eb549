//! Streaming decode: the decoder chain of `tokenizers`, run token by token.
//!
//! The library's own `DecodeStream` re-decodes a window of tokens and compares it with the text given
//! before; it fails with byte tokens (one bad byte turns a whole run of them into U+FFFD, letters too) and
//! with text that ends in a real U+FFFD. Here each decoder is a stage that hands on what no later token
//! can change and holds back the rest, so that all pieces together are `decode` of all tokens, whatever
//! they are. Where a decoder works on single tokens the library's own code is called.
//!
//! A stage behind `Fuse` or `ByteLevel` sees one token in parts (`fused`).

use tokenizers::decoders::DecoderWrapper;
use tokenizers::{Decoder, Result};

enum Stage {
    /// Each token by itself.
    Each(DecoderWrapper),
    /// The first token of all is treated otherwise than the others.
    First { decoder: DecoderWrapper, seen: bool },
    /// The last token of all is treated otherwise than the others.
    Last {
        decoder: DecoderWrapper,
        held: Option<String>,
    },
    /// A run of byte tokens is text, or U+FFFD for each of them: known when the run ends.
    Bytes {
        decoder: DecoderWrapper,
        held: Vec<String>,
    },
    /// Bytes of an unfinished character are held: three at most.
    ByteLevel { held: Vec<u8> },
    /// Joins the tokens; as parts they go on at once.
    Fuse,
    /// Of the one fused token up to `left` leading characters `content` are dropped.
    StripStart { content: char, left: usize },
    /// Anything else waits for the end: exact, not streaming. No known language model has such a chain.
    Rest {
        decoder: DecoderWrapper,
        fused: bool,
        held: Vec<String>,
    },
    /// No decoder at all: tokens are joined with spaces.
    Spaces { seen: bool },
}

pub struct Stages(Vec<Stage>);

impl Stages {
    pub fn new(decoder: Option<&DecoderWrapper>) -> Stages {
        let mut stages = Vec::new();
        match decoder {
            Some(d) => append(&mut stages, d, &mut false),
            None => stages.push(Stage::Spaces { seen: false }),
        }
        Stages(stages)
    }

    /// Runs one token through all stages and appends what came out to `out`.
    pub fn push(&mut self, token: String, out: &mut String) -> Result<()> {
        run(&mut self.0, vec![token], out)
    }

    /// No token follows: everything held back is appended to `out`.
    pub fn finish(&mut self, out: &mut String) -> Result<()> {
        for i in 0..self.0.len() {
            let mut tokens = Vec::new();
            self.0[i].finish(&mut tokens)?;
            run(&mut self.0[i + 1..], tokens, out)?;
        }
        Ok(())
    }
}

fn run(stages: &mut [Stage], mut tokens: Vec<String>, out: &mut String) -> Result<()> {
    for stage in stages {
        let mut next = Vec::with_capacity(tokens.len());
        for token in tokens {
            stage.push(token, &mut next)?;
        }
        tokens = next;
    }
    for token in tokens {
        out.push_str(&token);
    }
    Ok(())
}

fn append(stages: &mut Vec<Stage>, decoder: &DecoderWrapper, fused: &mut bool) {
    let own = decoder.clone();
    stages.push(match decoder {
        DecoderWrapper::Sequence(sequence) => {
            for inner in sequence.get_decoders() {
                append(stages, inner, fused);
            }
            return;
        }
        DecoderWrapper::Fuse(_) => {
            *fused = true;
            Stage::Fuse
        }
        DecoderWrapper::Strip(s) if *fused && s.stop == 0 => Stage::StripStart {
            content: s.content,
            left: s.start,
        },
        _ if *fused => Stage::Rest {
            decoder: own,
            fused: true,
            held: Vec::new(),
        },
        DecoderWrapper::Replace(_) | DecoderWrapper::Strip(_) => Stage::Each(own),
        DecoderWrapper::Metaspace(_) | DecoderWrapper::WordPiece(_) => Stage::First {
            decoder: own,
            seen: false,
        },
        DecoderWrapper::BPE(_) => Stage::Last {
            decoder: own,
            held: None,
        },
        DecoderWrapper::ByteFallback(_) => Stage::Bytes {
            decoder: own,
            held: Vec::new(),
        },
        DecoderWrapper::ByteLevel(_) => {
            *fused = true;
            Stage::ByteLevel { held: Vec::new() }
        }
        DecoderWrapper::CTC(_) => Stage::Rest {
            decoder: own,
            fused: false,
            held: Vec::new(),
        },
    });
}

impl Stage {
    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        match self {
            Stage::Each(decoder) => out.extend(decoder.decode_chain(vec![token])?),
            Stage::First { decoder, seen } => {
                // A token in front of it makes this one not the first.
                let tokens = if *seen {
                    vec![String::new(), token]
                } else {
                    vec![token]
                };
                *seen = true;
                out.extend(decoder.decode_chain(tokens)?.pop());
            }
            Stage::Last { decoder, held } => {
                if let Some(before) = held.take() {
                    let tokens = decoder.decode_chain(vec![before, String::new()])?;
                    out.extend(tokens.into_iter().next());
                }
                *held = Some(token);
            }
            Stage::Bytes { decoder, held } => {
                if is_byte_token(&token) {
                    held.push(token);
                } else {
                    out.extend(decoder.decode_chain(std::mem::take(held))?);
                    out.push(token);
                }
            }
            Stage::ByteLevel { held } => {
                append_bytes(held, &token);
                out.push(take_characters(held));
            }
            Stage::Fuse => out.push(token),
            Stage::StripStart { content, left } => {
                let mut text = token.as_str();
                while *left > 0 && !text.is_empty() {
                    match text.strip_prefix(*content) {
                        Some(rest) => {
                            text = rest;
                            *left -= 1;
                        }
                        None => *left = 0,
                    }
                }
                out.push(text.to_string());
            }
            Stage::Rest { held, .. } => held.push(token),
            Stage::Spaces { seen } => {
                out.push(if *seen { format!(" {token}") } else { token });
                *seen = true;
            }
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<String>) -> Result<()> {
        match self {
            Stage::Last { decoder, held } => {
                if let Some(last) = held.take() {
                    out.extend(decoder.decode_chain(vec![last])?);
                }
            }
            Stage::Bytes { decoder, held } => {
                out.extend(decoder.decode_chain(std::mem::take(held))?);
            }
            Stage::ByteLevel { held } => {
                out.push(String::from_utf8_lossy(held).into_owned());
                held.clear();
            }
            Stage::Rest {
                decoder,
                fused,
                held,
            } => {
                let mut tokens = std::mem::take(held);
                if *fused {
                    tokens = vec![tokens.concat()];
                }
                if tokens.iter().any(|t| !t.is_empty()) {
                    out.extend(decoder.decode_chain(tokens)?);
                }
            }
            Stage::Each(_) | Stage::First { .. } | Stage::Fuse => {}
            Stage::StripStart { .. } | Stage::Spaces { .. } => {}
        }
        Ok(())
    }
}

/// What the decoder `ByteFallback` takes for a byte: "<0x0A>".
fn is_byte_token(token: &str) -> bool {
    token.len() == 6
        && token.starts_with("<0x")
        && token.ends_with('>')
        && u8::from_str_radix(&token[3..5], 16).is_ok()
}

/// Appends a byte-level token: each of its characters stands for a byte, or (an added token that is
/// written as it is) none does.
fn append_bytes(held: &mut Vec<u8>, token: &str) {
    let start = held.len();
    for c in token.chars() {
        match byte_of(c) {
            Some(b) => held.push(b),
            None => {
                held.truncate(start);
                held.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// GPT-2's alphabet: printable Latin-1 characters are themselves, the other 68 bytes follow from U+0100.
fn byte_of(c: char) -> Option<u8> {
    match c as u32 {
        n @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(n as u8),
        n @ 0x100..=0x120 => Some((n - 0x100) as u8),
        n @ 0x121..=0x142 => Some((n - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Takes all that no later byte can change: whole characters, and U+FFFD for what can be none.
fn take_characters(held: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut done = 0;
    while done < held.len() {
        let bytes = &held[done..];
        match std::str::from_utf8(bytes) {
            Ok(s) => {
                text.push_str(s);
                done = held.len();
            }
            Err(e) => {
                text.push_str(&String::from_utf8_lossy(&bytes[..e.valid_up_to()]));
                done += e.valid_up_to();
                let Some(bad) = e.error_len() else { break };
                text.push('\u{fffd}');
                done += bad;
            }
        }
    }
    held.drain(..done);
    text
}
