//! Turns bytes into messages and back; names no socket, no file and no clock.

pub mod frame;
pub mod message;
pub mod url;

pub use frame::{
    EncodedFrame, Frame, FrameDecoder, FrameError, FrameKind, ItemsFrame, encode_message,
};
pub use message::{
    Content, Differs, DownstreamHello, Item, Listed, Message, Plan, RangeId, Refusal, StageId,
    UpstreamHello, Versions,
};
pub use url::{HostPort, Url, UrlError};
