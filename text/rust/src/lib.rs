//! Tokenizer and chat template of one model folder, as a static library for C.
//!
//! `abi` is the border and the only place with unsafe code but one call of the C library in `chat`;
//! the other modules know nothing of C.

mod abi;
mod chat;
mod files;
mod json;
mod python;
mod stream;
mod text;
