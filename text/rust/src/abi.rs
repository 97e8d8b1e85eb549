//! The border to text.c (text/rust_abi.h): plain C types, no panic crosses it.
//!
//! Pointers come from text.c, which has checked them: never NULL but where said, and as long as told.

use std::any::Any;
use std::ffi::{c_char, CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::sync::{Arc, Once};

use crate::chat::Message;
use crate::stream::Stages;
use crate::text::Text;

const OK: i32 = 0;
const NO_SPACE: i32 = 1;
const BAD_MODEL: i32 = 2;
const BAD_INPUT: i32 = 3;
const NO_TEMPLATE: i32 = 4;
const INTERNAL: i32 = 5;
const NO_MEMORY: i32 = 6;

type Failure = (i32, String);

pub struct Handle {
    text: Arc<Text>,
    hash: [u8; 65],
}

pub struct Stream {
    text: Arc<Text>,
    stages: Stages,
    piece: String,
    broken: bool,
}

#[repr(C)]
pub struct CMessage {
    role: *const u8,
    role_bytes: usize,
    content: *const u8,
    content_bytes: usize,
}

/// Where text.c wants the sentence that explains a failure; `room` counts the NUL.
#[repr(C)]
pub struct Why {
    text: *mut u8,
    room: usize,
}

/// Runs `work`; a failure's sentence goes to `why`, a panic becomes INTERNAL.
fn guard(why: *mut Why, work: impl FnOnce() -> Result<(), Failure>) -> i32 {
    let result = catch_unwind(AssertUnwindSafe(work));
    let (code, sentence) = match result {
        Ok(Ok(())) => return OK,
        Ok(Err(failure)) => failure,
        Err(panic) => (INTERNAL, format!("internal error: {}", panic_text(&*panic))),
    };
    if !why.is_null() {
        unsafe { write_why(&*why, &sentence) };
    }
    code
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    match panic.downcast_ref::<String>() {
        Some(s) => s,
        None => panic.downcast_ref::<&str>().unwrap_or(&"unknown"),
    }
}

/// minijinja panics on a few constructs; the one known is a slice backwards over nothing.
fn engine_failed(panic: &(dyn Any + Send)) -> String {
    let detail = panic_text(panic);
    format!("chat template: a slice with a negative step of an empty value, or another construct that the template engine lacks ({detail})")
}

/// Writes as many whole characters as fit, control characters as spaces: it ends in a log line.
unsafe fn write_why(why: &Why, sentence: &str) {
    let mut used = 0;
    for c in sentence.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if used + c.len_utf8() >= why.room {
            break;
        }
        let mut bytes = [0; 4];
        let s = c.encode_utf8(&mut bytes);
        std::ptr::copy_nonoverlapping(s.as_ptr(), why.text.add(used), s.len());
        used += s.len();
    }
    *why.text.add(used) = 0;
}

/// `bytes` may be 0, and then `p` anything.
unsafe fn utf8<'a>(p: *const u8, bytes: usize, what: &str) -> Result<&'a str, Failure> {
    if bytes == 0 {
        return Ok("");
    }
    let slice = std::slice::from_raw_parts(p, bytes);
    std::str::from_utf8(slice).map_err(|e| {
        let at = e.valid_up_to();
        (BAD_INPUT, format!("{what} is not UTF-8 (at byte {at})"))
    })
}

/// Panics are reported as values; nothing is printed.
fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|_| {}));
        tokenizers::utils::parallelism::set_parallelism(false);
    });
}

#[no_mangle]
pub unsafe extern "C" fn lorry_text_open(
    out: *mut *mut Handle,
    dir: *const c_char,
    why: *mut Why,
) -> i32 {
    silence_panics();
    let code = guard(why, || {
        let dir = Path::new(OsStr::from_bytes(CStr::from_ptr(dir).to_bytes()));
        let text = Arc::new(Text::open(dir).map_err(|e| (BAD_MODEL, e))?);
        let mut hash = [0; 65];
        hash[..64].copy_from_slice(text.hash.as_bytes());
        *out = Box::into_raw(Box::new(Handle { text, hash }));
        Ok(())
    });
    // The parsers of `tokenizers` panic on some files: then it is the file that is at fault.
    if code == INTERNAL {
        BAD_MODEL
    } else {
        code
    }
}

#[no_mangle]
pub unsafe extern "C" fn lorry_text_close(handle: *mut Handle) {
    guard(std::ptr::null_mut(), || {
        drop(Box::from_raw(handle));
        Ok(())
    });
}

#[no_mangle]
pub unsafe extern "C" fn lorry_text_hash(handle: &Handle) -> *const c_char {
    handle.hash.as_ptr().cast()
}

#[no_mangle]
pub unsafe extern "C" fn lorry_text_vocab_count(handle: &Handle) -> u32 {
    handle.text.vocab_count
}

#[no_mangle]
pub unsafe extern "C" fn lorry_text_has_template(handle: &Handle) -> bool {
    handle.text.chat().is_some()
}

#[no_mangle]
pub unsafe extern "C" fn lorry_text_token_id(
    handle: &Handle,
    token: *const u8,
    bytes: usize,
) -> u32 {
    let mut id = None;
    guard(std::ptr::null_mut(), || {
        id = handle.text.token_id(utf8(token, bytes, "token")?);
        Ok(())
    });
    id.unwrap_or(u32::MAX)
}

#[repr(C)]
pub struct Tokens {
    ids: *mut u32,
    room: usize,
    count: usize,
}

#[no_mangle]
pub unsafe extern "C" fn lorry_text_encode(
    handle: &Handle,
    text: *const u8,
    bytes: usize,
    specials: bool,
    tokens: *mut Tokens,
    why: *mut Why,
) -> i32 {
    guard(why, || {
        let text = utf8(text, bytes, "text")?;
        let encoded = handle.text.encode(text, specials);
        let ids = encoded.map_err(|e| (INTERNAL, format!("tokenizer: {e}")))?;
        let tokens = &mut *tokens;
        tokens.count = ids.len();
        if ids.len() > tokens.room {
            let (need, room) = (ids.len(), tokens.room);
            return Err((NO_SPACE, format!("{need} tokens, room for {room}")));
        }
        if !ids.is_empty() {
            std::ptr::copy_nonoverlapping(ids.as_ptr(), tokens.ids, ids.len());
        }
        Ok(())
    })
}

/// *out: a string of *out_bytes and a NUL; back to lorry_text_release().
#[no_mangle]
pub unsafe extern "C" fn lorry_text_render(
    handle: &Handle,
    messages: *const CMessage,
    count: usize,
    out: *mut *mut c_char,
    out_bytes: *mut usize,
    why: *mut Why,
) -> i32 {
    guard(why, || {
        let Some(chat) = handle.text.chat() else {
            return Err((NO_TEMPLATE, "the model has no chat template".into()));
        };
        let mut list = Vec::with_capacity(count);
        for i in 0..count {
            let m = &*messages.add(i);
            list.push(Message {
                role: utf8(m.role, m.role_bytes, &format!("messages[{i}].role"))?,
                content: utf8(
                    m.content,
                    m.content_bytes,
                    &format!("messages[{i}].content"),
                )?,
            });
        }
        let rendered = catch_unwind(AssertUnwindSafe(|| chat.render(&list)));
        let text = rendered
            .unwrap_or_else(|panic| Err(engine_failed(&*panic)))
            .map_err(|e| (BAD_INPUT, e))?;
        let room = text.len() + 1;
        let copy: *mut u8 = libc::malloc(room).cast();
        if copy.is_null() {
            return Err((NO_MEMORY, format!("no memory for {room} bytes of prompt")));
        }
        std::ptr::copy_nonoverlapping(text.as_ptr(), copy, text.len());
        *copy.add(text.len()) = 0;
        *out = copy.cast();
        *out_bytes = text.len();
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lorry_text_stream_open(out: *mut *mut Stream, handle: &Handle) -> i32 {
    guard(std::ptr::null_mut(), || {
        let text = handle.text.clone();
        *out = Box::into_raw(Box::new(Stream {
            stages: text.stages(),
            text,
            piece: String::new(),
            broken: false,
        }));
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lorry_text_stream_close(stream: *mut Stream) {
    guard(std::ptr::null_mut(), || {
        drop(Box::from_raw(stream));
        Ok(())
    });
}

/// Runs `work` on a stream whose piece is empty; after a failure the stream stays broken.
unsafe fn stream_step(
    stream: &mut Stream,
    piece: *mut *const c_char,
    piece_bytes: *mut usize,
    work: impl FnOnce(&mut Stream) -> tokenizers::Result<()>,
) -> i32 {
    guard(std::ptr::null_mut(), || {
        if stream.broken {
            return Err((INTERNAL, String::new()));
        }
        stream.broken = true; // until it is known that no decoder failed
        stream.piece.clear();
        work(stream).map_err(|e| (INTERNAL, e.to_string()))?;
        stream.broken = false;
        *piece = stream.piece.as_ptr().cast();
        *piece_bytes = stream.piece.len();
        Ok(())
    })
}

#[no_mangle]
pub unsafe extern "C" fn lorry_text_stream_push(
    stream: &mut Stream,
    token: u32,
    piece: *mut *const c_char,
    piece_bytes: *mut usize,
) -> i32 {
    stream_step(stream, piece, piece_bytes, |s| {
        match s.text.plain_token(token) {
            Some(t) => s.stages.push(t, &mut s.piece),
            None => Ok(()),
        }
    })
}

/// Gives what was held back; the stream then stands at its beginning again.
#[no_mangle]
pub unsafe extern "C" fn lorry_text_stream_finish(
    stream: &mut Stream,
    piece: *mut *const c_char,
    piece_bytes: *mut usize,
) -> i32 {
    stream_step(stream, piece, piece_bytes, |s| {
        s.stages.finish(&mut s.piece)?;
        s.stages = s.text.stages();
        Ok(())
    })
}
