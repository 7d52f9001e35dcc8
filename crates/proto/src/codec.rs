//! The codec of every gRPC call: prost's, with buffers that begin small.
//!
//! A call's two buffers live as long as the call, and a control plane has two calls open for each sidecar: tonic's 8 KiB
//! each would be more than all else that it keeps of a sidecar. They grow with the messages that need it, at once to
//! their size: what grows by itself doubles, and the room stays.

use std::marker::PhantomData;

use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
};
use tonic_prost::{ProstCodec, ProstEncoder};

/// As the generated code makes it.
#[derive(Debug, Clone)]
pub struct SmallCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = SmallEncoder<T>;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        SmallEncoder(ProstEncoder::new(BufferSettings::new(BUFFER, YIELD)))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, YIELD))
    }
}

/// prost's, with as much room as the message needs.
#[derive(Debug, Clone)]
pub struct SmallEncoder<T>(ProstEncoder<T>);

impl<T: Message> Encoder for SmallEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.reserve(item.encoded_len());
        self.0.encode(item, buf)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// A buffer's first size and the unit in which it grows.
const BUFFER: usize = 64;
/// Messages that are ready together are sent together up to here; tonic's own default.
const YIELD: usize = 32 * 1024;
