//! The codec of every gRPC call: prost's, with buffers that begin small.
//!
//! A call's two buffers live as long as the call, and a control plane has two calls open for each sidecar: tonic's 8 KiB
//! each would be more than all else that it keeps of a sidecar. They grow with the messages that need it.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

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
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, YIELD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, YIELD))
    }
}

/// A buffer's first size and the unit in which it grows.
const BUFFER: usize = 512;
/// Messages that are ready together are sent together up to here; tonic's own default.
const YIELD: usize = 32 * 1024;
