//! DNS messages as bytes (RFC 1035, RFC 6891): reads what the server has to know of them, and makes its own answers.
//!
//! What is forwarded is never taken apart and put together again: of an answer only the places of its TTLs are found, so
//! that records, options and types of which nothing is known here pass as they came. Nothing in here follows a
//! compression pointer, so nothing can loop.

use std::net::IpAddr;

/// Bytes of a header.
pub const HEADER: usize = 12;
/// The longest name, in its form on the wire.
pub const LONGEST_NAME: usize = 255;
/// Of a client that does not say how much it takes by UDP.
pub const PLAIN_UDP: usize = 512;
/// The most that is sent by UDP, whatever a client says it takes.
pub const MOST_UDP: usize = 4096;
/// What we say that we take, as resolvers agreed in 2020: fits one packet of every network.
const OUR_UDP: u16 = 1232;

/// Types of records.
pub mod kind {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Another name.
    pub const CNAME: u16 = 5;
    /// Start of authority.
    pub const SOA: u16 = 6;
    /// Name of an address.
    pub const PTR: u16 = 12;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// EDNS.
    pub const OPT: u16 = 41;
    /// Transfers of zones, which a resolver does not make.
    pub const IXFR: u16 = 251;
    /// See [`IXFR`].
    pub const AXFR: u16 = 252;
    /// Whatever there is.
    pub const ANY: u16 = 255;
}

/// Response codes.
pub mod code {
    /// Done.
    pub const NO_ERROR: u8 = 0;
    /// The query cannot be read.
    pub const FORMAT: u8 = 1;
    /// No answer could be had.
    pub const SERVER_FAILURE: u8 = 2;
    /// There is no such name.
    pub const NO_NAME: u8 = 3;
    /// Not a query.
    pub const NOT_IMPLEMENTED: u8 = 4;
    /// Not for this server to answer.
    pub const REFUSED: u8 = 5;
}

/// Class IN.
pub const INTERNET: u16 = 1;

/// What a query asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// As asked, in its form on the wire.
    pub name: Box<[u8]>,
    /// Type.
    pub kind: u16,
    /// Class.
    pub class: u16,
}

/// A query that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Its number.
    pub id: u16,
    /// The two bytes of flags.
    pub flags: u16,
    /// What it asks for.
    pub question: Question,
    /// `None`: it does not know of EDNS.
    pub edns: Option<Edns>,
}

/// What a client says by EDNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    /// The most bytes that it takes by UDP.
    pub payload: u16,
    /// It wants signatures.
    pub secure: bool,
    /// It says more (cookies, its network, another version): the answer is for it alone.
    pub options: bool,
}

/// Why a message is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// Not a query at all: an answer would be one to nobody, or start a loop.
    Drop,
    /// To be told by this code.
    Answer(u8),
}

pub(super) const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const AUTHORITATIVE: u16 = 0x0400;
pub(super) const TRUNCATED: u16 = 0x0200;
const RECURSION_DESIRED: u16 = 0x0100;
const RECURSION_AVAILABLE: u16 = 0x0080;
const AUTHENTIC: u16 = 0x0020;
pub(super) const CHECKING_DISABLED: u16 = 0x0010;

/// Reads a query.
/// # Errors
/// [`Unfit`].
pub fn query(bytes: &[u8]) -> Result<Query, Unfit> {
    let [id, flags, questions, answers, authorities, additional] = header(bytes).ok_or(Unfit::Drop)?;
    if flags & RESPONSE != 0 {
        return Err(Unfit::Drop);
    }
    if flags & OPCODE != 0 {
        return Err(Unfit::Answer(code::NOT_IMPLEMENTED));
    }
    let malformed = Unfit::Answer(code::FORMAT);
    if questions != 1 || answers != 0 {
        return Err(malformed);
    }
    let (question, mut at) = question(bytes).ok_or(malformed)?;
    let mut edns = None;
    for index in 0..u32::from(authorities) + u32::from(additional) {
        let record = record(bytes, at).ok_or(malformed)?;
        at = record.end;
        if record.kind == kind::OPT && index >= u32::from(authorities) {
            let [extended, version, high, _] = record.ttl.to_be_bytes();
            let options = !record.data.is_empty() || version != 0 || extended != 0;
            let one = Edns { payload: record.class, secure: high & 0x80 != 0, options };
            if edns.replace(one).is_some() {
                return Err(malformed);
            }
        }
    }
    Ok(Query { id, flags, question, edns })
}

impl Query {
    /// The most bytes that the client takes by UDP.
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(PLAIN_UDP, |edns| usize::from(edns.payload).clamp(PLAIN_UDP, MOST_UDP))
    }

    /// The bits on which an answer depends.
    pub fn variant(&self) -> u16 {
        let edns = self.edns.map_or(0, |edns| 1 | u16::from(edns.secure) << 1);
        self.flags & (RECURSION_DESIRED | AUTHENTIC | CHECKING_DISABLED) | edns
    }
}

impl Question {
    /// The name in lower case with dots between its labels, none at the end. `None`: with bytes that no host name has.
    pub fn text(&self) -> Option<String> {
        let mut text = String::with_capacity(self.name.len());
        let mut rest = &*self.name;
        while let Some((length, tail)) = rest.split_first().filter(|(length, _)| **length > 0) {
            let (label, after) = tail.split_at_checked(usize::from(*length))?;
            if !text.is_empty() {
                text.push('.');
            }
            for byte in label {
                if !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
                    return None;
                }
                text.push(char::from(byte.to_ascii_lowercase()));
            }
            rest = after;
        }
        Some(text)
    }

    /// The same but for upper and lower case.
    pub fn same(&self, other: &Self) -> bool {
        self.kind == other.kind && self.class == other.class && self.name.eq_ignore_ascii_case(&other.name)
    }

    /// Bytes on the wire.
    fn len(&self) -> usize {
        self.name.len() + 4
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.name);
        out.extend_from_slice(&self.kind.to_be_bytes());
        out.extend_from_slice(&self.class.to_be_bytes());
    }
}

/// A record.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    /// Type.
    pub kind: u16,
    /// Class.
    pub class: u16,
    /// As said.
    pub ttl: u32,
    /// Where the TTL stands.
    pub ttl_at: usize,
    /// Data.
    pub data: &'a [u8],
    /// Where the next one begins.
    pub end: usize,
}

/// The six numbers of a header.
pub fn header(bytes: &[u8]) -> Option<[u16; 6]> {
    let head = bytes.get(..HEADER)?;
    let mut numbers = [0; 6];
    for (number, pair) in numbers.iter_mut().zip(head.chunks_exact(2)) {
        *number = u16::from_be_bytes([pair[0], pair[1]]);
    }
    Some(numbers)
}

/// The first question of a message and where what follows begins. Its name must be written out.
pub fn question(bytes: &[u8]) -> Option<(Question, usize)> {
    let end = name_end(bytes, HEADER)?;
    let name = &bytes[HEADER..end];
    // The last byte of a name that is written out is its empty label.
    if name.last() != Some(&0) || name.len() > LONGEST_NAME {
        return None;
    }
    let (kind, class) = (number(bytes, end)?, number(bytes, end + 2)?);
    Some((Question { name: name.into(), kind, class }, end + 4))
}

/// The record at a place.
pub fn record(bytes: &[u8], at: usize) -> Option<Record<'_>> {
    let at = name_end(bytes, at)?;
    let fixed = bytes.get(at..at + 10)?;
    let length = usize::from(number(bytes, at + 8)?);
    Some(Record {
        kind: number(bytes, at)?,
        class: number(bytes, at + 2)?,
        ttl: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
        ttl_at: at + 4,
        data: bytes.get(at + 10..at + 10 + length)?,
        end: at + 10 + length,
    })
}

/// Where the name at a place ends. A compression pointer ends it.
pub fn name_end(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return bytes.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// What an answer of our own says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These addresses; none: there are none of the type, but the name exists.
    Addresses(Vec<IpAddr>),
    /// This name, with dots.
    Pointer(String),
    /// There is no such name.
    NoName,
    /// An error.
    Failed(u8),
}

/// Makes an answer of at most `limit` bytes; what does not fit is left out, and the answer says so. `ttl`: seconds.
pub fn answer(query: &Query, answer: &Answer, ttl: u32, limit: usize) -> Vec<u8> {
    let rcode = match answer {
        Answer::NoName => code::NO_NAME,
        Answer::Failed(code) => *code,
        Answer::Addresses(_) | Answer::Pointer(_) => code::NO_ERROR,
    };
    let mut flags = RESPONSE | RECURSION_AVAILABLE | u16::from(rcode);
    flags |= query.flags & (RECURSION_DESIRED | CHECKING_DISABLED);
    if !matches!(answer, Answer::Failed(_)) {
        flags |= AUTHORITATIVE;
    }
    let edns = if query.edns.is_some() { 11 } else { 0 };
    let limit = limit.saturating_sub(edns).min(usize::from(u16::MAX) - edns);
    let mut out = Vec::with_capacity(PLAIN_UDP);
    out.resize(HEADER, 0);
    query.question.write(&mut out);
    let (mut answers, mut authorities) = (0_u16, 0_u16);
    let room = |out: &Vec<u8>, data: usize| out.len() + 12 + data <= limit;
    match answer {
        Answer::Addresses(addresses) if !addresses.is_empty() => {
            for address in addresses {
                let (kind, data) = match address {
                    IpAddr::V4(v4) => (kind::A, v4.octets().to_vec()),
                    IpAddr::V6(v6) => (kind::AAAA, v6.octets().to_vec()),
                };
                if !room(&out, data.len()) || answers == u16::MAX {
                    flags |= TRUNCATED;
                    break;
                }
                put(&mut out, kind, ttl, &data);
                answers += 1;
            }
        }
        Answer::Pointer(name) => {
            put(&mut out, kind::PTR, ttl, &encoded(name));
            answers = 1;
        }
        Answer::Addresses(_) | Answer::NoName => {
            let soa = start_of_authority(ttl);
            if room(&out, soa.len()) {
                put(&mut out, kind::SOA, ttl, &soa);
                authorities = 1;
            }
        }
        Answer::Failed(_) => {}
    }
    if let Some(edns) = query.edns {
        out.push(0);
        out.extend_from_slice(&kind::OPT.to_be_bytes());
        out.extend_from_slice(&OUR_UDP.to_be_bytes());
        out.extend_from_slice(&[0, 0, u8::from(edns.secure) << 7, 0, 0, 0]);
    }
    let additional = u16::from(query.edns.is_some());
    for (index, number) in [query.id, flags, 1, answers, authorities, additional].into_iter().enumerate() {
        out[2 * index..2 * index + 2].copy_from_slice(&number.to_be_bytes());
    }
    out
}

/// The answer to what cannot be read, as far as its head goes.
pub fn unreadable(bytes: &[u8], rcode: u8) -> Option<Vec<u8>> {
    let [id, flags, ..] = header(bytes)?;
    let mut out = vec![0; HEADER];
    out[..2].copy_from_slice(&id.to_be_bytes());
    let flags = RESPONSE | RECURSION_AVAILABLE | flags & (OPCODE | RECURSION_DESIRED) | u16::from(rcode);
    out[2..4].copy_from_slice(&flags.to_be_bytes());
    Some(out)
}

/// The question again, with the flag that says: ask by TCP.
pub fn truncated(query: &Query) -> Vec<u8> {
    let mut out = answer(query, &Answer::Failed(code::NO_ERROR), 0, MOST_UDP);
    out[2] |= (TRUNCATED >> 8) as u8;
    out
}

/// A record whose name is the question's.
fn put(out: &mut Vec<u8>, kind: u16, ttl: u32, data: &[u8]) {
    out.extend_from_slice(&[0xc0, HEADER as u8]);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&INTERNET.to_be_bytes());
    out.extend_from_slice(&ttl.to_be_bytes());
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}

/// Tells for how long the absence of something may be remembered (RFC 2308).
fn start_of_authority(ttl: u32) -> Vec<u8> {
    let mut data = encoded("dns.weft.mesh");
    data.extend(encoded("hostmaster.weft.mesh"));
    for number in [1, 3600, 600, 86_400, ttl] {
        data.extend_from_slice(&number.to_be_bytes());
    }
    data
}

/// A name with dots in its form on the wire. Labels that are too long do not occur: names come from questions.
pub(super) fn encoded(name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| (1..=63).contains(&label.len())) {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out
}

/// What is to be known of an answer that came from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Response code.
    pub rcode: u8,
    /// There is more than this.
    pub truncated: bool,
    /// Where the TTLs stand.
    pub ttls: Box<[u16]>,
    /// For how long it may be remembered, in seconds. `None`: not at all.
    pub lifetime: Option<u32>,
}

/// Looks at an answer. `None`: it is none to this question, or cannot be read to its end.
pub fn shape(bytes: &[u8], id: u16, asked: &Question) -> Option<Shape> {
    let [own, flags, questions, answers, authorities, additional] = header(bytes)?;
    if own != id || flags & RESPONSE == 0 || flags & OPCODE != 0 || questions != 1 {
        return None;
    }
    let (question, mut at) = question(bytes)?;
    if !question.same(asked) {
        return None;
    }
    let (rcode, truncated) = ((flags & 0xf) as u8, flags & TRUNCATED != 0);
    let mut ttls = Vec::new();
    let (mut least, mut denial, mut found) = (u32::MAX, None, false);
    let (answers, authorities) = (u32::from(answers), u32::from(authorities));
    for index in 0..answers + authorities + u32::from(additional) {
        let record = match record(bytes, at) {
            Some(record) => record,
            // What was cut off may be cut off anywhere.
            None if truncated => break,
            None => return None,
        };
        at = record.end;
        if record.kind == kind::OPT {
            continue;
        }
        ttls.push(u16::try_from(record.ttl_at).ok()?);
        // A TTL with its first bit set means zero (RFC 2181).
        let ttl = if record.ttl > i32::MAX as u32 { 0 } else { record.ttl };
        if index < answers {
            least = least.min(ttl);
            found |= record.kind == asked.kind || asked.kind == kind::ANY;
        } else if index < answers + authorities && record.kind == kind::SOA {
            let minimum = record.data.last_chunk().map_or(0, |last| u32::from_be_bytes(*last));
            denial = Some(ttl.min(minimum));
        }
    }
    let lifetime = match rcode {
        _ if truncated => None,
        code::NO_ERROR if found => Some(least),
        code::NO_ERROR | code::NO_NAME => denial.map(|denial| denial.min(least)),
        _ => None,
    };
    Some(Shape { rcode, truncated, ttls: ttls.into(), lifetime: lifetime.filter(|seconds| *seconds > 0) })
}

/// Makes of an answer to one client the answer to another that asks the same: `age` seconds later, and with at most
/// `most` seconds to live.
pub fn readdress(bytes: &mut [u8], query: &Query, ttls: &[u16], age: u32, most: u32) {
    for at in ttls.iter().map(|at| usize::from(*at)) {
        if let Some(ttl) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<4>) {
            *ttl = u32::from_be_bytes(*ttl).saturating_sub(age).min(most).to_be_bytes();
        }
    }
    set_id(bytes, query.id);
    // From memory, so not with authority.
    bytes[2] &= !((AUTHORITATIVE >> 8) as u8);
    let end = HEADER + query.question.len();
    if let Some(name) = bytes.get_mut(HEADER..end - 4).filter(|name| name.eq_ignore_ascii_case(&query.question.name)) {
        name.copy_from_slice(&query.question.name);
    }
}

/// Gives a message another number.
pub fn set_id(bytes: &mut [u8], id: u16) {
    bytes[..2].copy_from_slice(&id.to_be_bytes());
}
