//! Messages as bytes: against another implementation, and against whatever anyone may send.

use hickory_proto::{
    op::{Edns, Message, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use proptest::prelude::*;

use super::{
    super::wire::{self, Answer, Unfit, code},
    query,
    resolver::{Said, a, soa},
};

#[test]
fn a_query_is_read_as_another_implementation_reads_it() {
    let mut message = query("Orders.Shop.", RecordType::AAAA);
    message.metadata.checking_disabled = true;
    let mut edns = Edns::new();
    edns.set_max_payload(1400).set_dnssec_ok(true);
    message.set_edns(edns);
    let read = wire::query(&message.to_vec().unwrap()).unwrap();
    assert_eq!((read.id, read.question.kind, read.question.class), (message.metadata.id, 28, 1));
    assert_eq!(read.question.text().as_deref(), Some("orders.shop"));
    assert_eq!(read.edns, Some(wire::Edns { payload: 1400, secure: true, options: false }));
    assert_eq!(read.udp_limit(), 1400);
    let plain = wire::query(&query("Orders.Shop.", RecordType::AAAA).to_vec().unwrap()).unwrap();
    assert_eq!((plain.edns, plain.udp_limit()), (None, 512));
    assert_ne!(plain.variant(), read.variant());
}

#[test]
fn an_answer_that_does_not_fit_says_so_and_holds_what_fits() {
    let asked = wire::query(&query("db.data.", RecordType::A).to_vec().unwrap()).unwrap();
    let addresses = (0..100).map(|n| std::net::IpAddr::from([10, 0, 0, n])).collect();
    let answer = Answer::Addresses(addresses);
    let short = wire::answer(&asked, &answer, 30, 512);
    assert!(short.len() <= 512);
    let read = Message::from_vec(&short).unwrap();
    assert!(read.metadata.truncation && read.answers.len() > 20);
    let whole = Message::from_vec(&wire::answer(&asked, &answer, 30, 65_535)).unwrap();
    assert!(!whole.metadata.truncation && whole.answers.len() == 100);
    let again = Message::from_vec(&wire::truncated(&asked)).unwrap();
    assert!(again.metadata.truncation && again.metadata.response_code == ResponseCode::NoError);
}

#[test]
fn how_long_an_answer_may_be_remembered() {
    let asked = query("example.com.", RecordType::A);
    let read = wire::query(&asked.to_vec().unwrap()).unwrap();
    let lifetime = |said: &Said| {
        let bytes = said.message.to_vec().unwrap();
        wire::shape(&bytes, read.id, &read.question).unwrap().lifetime
    };
    assert_eq!(lifetime(&Said::answer(&asked, &[a([1, 1, 1, 1], 60), a([1, 1, 1, 2], 20)])), Some(20), "the least");
    assert_eq!(lifetime(&Said::answer(&asked, &[a([1, 1, 1, 1], 0)])), None, "not at all");
    assert_eq!(lifetime(&Said::answer(&asked, &[a([1, 1, 1, 1], u32::MAX)])), None, "with its first bit set it is 0");
    let alias = (RData::CNAME(hickory_proto::rr::rdata::CNAME(Name::from_ascii("x.").unwrap())), 50);
    assert_eq!(
        lifetime(&Said::answer(&asked, std::slice::from_ref(&alias))),
        None,
        "an alias of nothing, without authority"
    );
    let mut denied = Said::answer(&asked, &[alias]);
    denied.message.add_authority(soa("com.", 600, 40));
    assert_eq!(lifetime(&denied), Some(40));
    let mut denied = Said::answer(&asked, &[]);
    denied.message.add_authority(soa("com.", 30, 40)).metadata.response_code = ResponseCode::NXDomain;
    assert_eq!(lifetime(&denied), Some(30));
    let mut failed = Said::answer(&asked, &[a([1, 1, 1, 1], 60)]);
    failed.message.metadata.response_code = ResponseCode::ServFail;
    assert_eq!(lifetime(&failed), None);
    let mut cut = Said::answer(&asked, &[a([1, 1, 1, 1], 60)]);
    cut.message.metadata.truncation = true;
    assert_eq!(lifetime(&cut), None);
}

fn name() -> impl Strategy<Value = String> {
    proptest::collection::vec("[a-zA-Z0-9]{1,20}", 1..5).prop_map(|labels| format!("{}.", labels.join(".")))
}

proptest! {
    /// Nothing that anyone sends makes it panic, and what is read as a query can be answered.
    #[test]
    fn whatever_comes(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in any::<u16>()) {
        match wire::query(&bytes) {
            Ok(read) => {
                let answer = wire::answer(&read, &Answer::NoName, 30, read.udp_limit());
                prop_assert!(answer.len() <= read.udp_limit().max(wire::LONGEST_NAME + 200));
                prop_assert!(wire::shape(&answer, read.id, &read.question).is_some());
                let _text = read.question.text();
            }
            Err(Unfit::Answer(code)) => {
                let told = wire::unreadable(&bytes, code).unwrap();
                prop_assert_eq!(&told[..2], &bytes[..2]);
            }
            Err(Unfit::Drop) => {}
        }
        let _record = wire::record(&bytes, at.into());
        let _name = wire::name_end(&bytes, at.into());
        if let Some((question, _)) = wire::question(&bytes) {
            let id = u16::from_be_bytes([bytes[0], bytes[1]]);
            if let Some(shape) = wire::shape(&bytes, id, &question) {
                let read = wire::Query { id: at, flags: 0, question, edns: None };
                let mut copy = bytes.clone();
                wire::readdress(&mut copy, &read, &shape.ttls, 5, 30);
                prop_assert_eq!(copy.len(), bytes.len());
            }
        }
    }

    /// A good message with some bytes broken: read or refused.
    #[test]
    fn whatever_is_broken(
        name in name(),
        breaks in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<proptest::sample::Index>(),
    ) {
        let asked = query(&name, RecordType::A);
        let mut answer = Said::answer(&asked, &[a([1, 2, 3, 4], 60), a([1, 2, 3, 5], 60)]);
        answer.message.add_authority(soa(&name, 600, 60));
        let mut bytes = answer.message.to_vec().unwrap();
        let read = wire::query(&asked.to_vec().unwrap()).unwrap();
        prop_assert_eq!(wire::shape(&bytes, read.id, &read.question).unwrap().lifetime, Some(60));
        for (at, byte) in breaks {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let _query = wire::query(&bytes);
        if let Some(shape) = wire::shape(&bytes, read.id, &read.question) {
            wire::readdress(&mut bytes, &read, &shape.ttls, 5, 30);
        }
    }

    /// What we write, another implementation reads, and the time to live is what it should be.
    #[test]
    fn what_is_written(name in name(), v4 in any::<[u8; 4]>(), age in 0u32..200) {
        let asked = query(&name, RecordType::A);
        let read = wire::query(&asked.to_vec().unwrap()).unwrap();
        prop_assert_eq!(read.question.text().unwrap() + ".", name.to_lowercase());
        let answer = wire::answer(&read, &Answer::Addresses(vec![v4.into()]), 100, 512);
        let message = Message::from_vec(&answer).unwrap();
        prop_assert_eq!(&message.queries, &asked.queries);
        prop_assert_eq!(&message.answers[0].data, &a(v4, 0).0);
        let shape = wire::shape(&answer, read.id, &read.question).unwrap();
        prop_assert_eq!((shape.rcode, shape.lifetime), (code::NO_ERROR, Some(100)));
        let mut other = read.clone();
        other.id ^= 0xffff;
        other.question.name = other.question.name.to_ascii_uppercase().into();
        let mut bytes = answer;
        wire::readdress(&mut bytes, &other, &shape.ttls, age, u32::MAX);
        let message = Message::from_vec(&bytes).unwrap();
        prop_assert_eq!(message.metadata.id, other.id);
        prop_assert_eq!(message.answers[0].ttl, 100u32.saturating_sub(age));
        let upper = Query::query(Name::from_ascii(name.to_uppercase()).unwrap(), RecordType::A);
        prop_assert_eq!(message.queries[0].name.to_string(), upper.name.to_string());
    }
}
