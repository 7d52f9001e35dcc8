//! The API's messages as JSON: proto3's own mapping, with two concessions to people: 64-bit numbers are numbers, and
//! fields without a value are shown.

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::{Serializer, Value};
use tonic::Code;

use super::error::ApiError;

/// A message as JSON.
pub fn encode<M: Message + Name>(message: &M) -> Result<Vec<u8>, ApiError> {
    let broken = |error: String| ApiError::new(Code::Internal, format!("the answer cannot be written: {error}"));
    let dynamic = DynamicMessage::decode(descriptor::<M>(), message.encode_to_vec().as_slice());
    let dynamic = dynamic.map_err(|error| broken(error.to_string()))?;
    let options = SerializeOptions::new().stringify_64_bit_integers(false).skip_default_fields(false);
    let mut out = Vec::new();
    dynamic
        .serialize_with_options(&mut Serializer::new(&mut out), &options)
        .map_err(|error| broken(error.to_string()))?;
    Ok(out)
}

/// A message from JSON. Bytes may be text, as YAML is, instead of base64.
/// # Errors
/// Not JSON, or a field that the message does not have.
pub fn decode<M: Message + Name + Default>(body: &[u8]) -> Result<M, ApiError> {
    let invalid = |error: String| ApiError::new(Code::InvalidArgument, format!("the body is not acceptable: {error}"));
    let mut value: Value = match body.trim_ascii().is_empty() {
        true => Value::Object(serde_json::Map::new()),
        false => serde_json::from_slice(body).map_err(|error| invalid(error.to_string()))?,
    };
    sources_as_base64(&mut value);
    let dynamic = DynamicMessage::deserialize(descriptor::<M>(), value).map_err(|error| invalid(error.to_string()))?;
    dynamic.transcode_to().map_err(|error| invalid(error.to_string()))
}

/// `sources[].text` is `sources[].content` without the base64.
fn sources_as_base64(value: &mut Value) {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let Some(sources) = value.get_mut("sources").and_then(Value::as_array_mut) else { return };
    for source in sources.iter_mut().filter_map(Value::as_object_mut) {
        if !source.contains_key("content")
            && let Some(Value::String(text)) = source.remove("text")
        {
            source.insert("content".into(), STANDARD.encode(text).into());
        }
    }
}

fn descriptor<M: Name>() -> MessageDescriptor {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(weft_proto::DESCRIPTORS).expect("the descriptors were written by protoc and are tested")
    });
    POOL.get_message_by_name(&M::full_name()).expect("every message of the API is in the descriptors")
}

#[cfg(test)]
mod tests {
    use weft_proto::weft::v1;

    use super::*;

    #[test]
    fn numbers_are_numbers_and_names_are_camel_case() {
        let response = v1::ApplyResponse { revision: 7, ..v1::ApplyResponse::default() };
        let text = String::from_utf8(encode(&response).unwrap()).unwrap();
        assert!(text.contains("\"revision\":7"), "{text}");
        let status = String::from_utf8(encode(&v1::StatusResponse::default()).unwrap()).unwrap();
        assert!(status.contains("\"controlPlaneVersion\":\"\""), "{status}");
    }

    #[test]
    fn text_may_stand_for_base64() {
        let request: v1::ApplyRequest =
            decode(br#"{"sources":[{"file":"a.yaml","text":"kind: Service"}],"dryRun":true,"expectedRevision":3}"#)
                .unwrap();
        assert_eq!(request.sources[0].content, b"kind: Service");
        assert!(request.dry_run && request.expected_revision == 3);
    }

    #[test]
    fn unknown_fields_are_refused() {
        let error = decode::<v1::RollbackRequest>(br#"{"toRevison":3}"#).unwrap_err();
        assert!(error.message.contains("toRevison"), "{}", error.message);
        assert!(decode::<v1::RollbackRequest>(b"").is_ok(), "an empty body is an empty message");
    }
}
