//! What goes through the mesh: an application of each protocol, and its client, one exchange at a time.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Result, bail, ensure};

/// One exchange; an error when the answer is not the application's.
pub type Exchange = Box<dyn FnMut() -> Result<()>>;

const ASK: &[u8] = b"GET /small HTTP/1.1\r\nhost: echo\r\nuser-agent: counts\r\naccept: */*\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n\r\ndone";
const BYTES: &[u8; 64] = &[b'x'; 64];

/// Starts an application: one thread a connection, until this process ends.
///
/// # Errors
/// When there is no port.
pub fn serve(application: fn(TcpStream) -> io::Result<()>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // How a connection ends is the sidecar's choice.
            thread::spawn(move || stream.set_nodelay(true).and_then(|()| application(stream)));
        }
    });
    Ok(address)
}

fn connected(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// Answers every HTTP/1.1 request; they have no bodies, and come one at a time.
pub fn http1_application(mut stream: TcpStream) -> io::Result<()> {
    let (mut buffer, mut filled) = (vec![0; 16 << 10], 0);
    loop {
        match stream.read(&mut buffer[filled..])? {
            0 => return Ok(()),
            read => filled += read,
        }
        if buffer[..filled].ends_with(b"\r\n\r\n") {
            filled = 0;
            stream.write_all(ANSWER)?;
        }
    }
}

/// # Errors
/// When there is no connection.
pub fn http1(to: SocketAddr) -> Result<Exchange> {
    let mut stream = connected(to)?;
    Ok(Box::new(move || {
        stream.write_all(ASK)?;
        let (mut answer, mut filled) = ([0; 4096], 0);
        while !answer[..filled].ends_with(b"\r\n\r\ndone") {
            let read = stream.read(&mut answer[filled..])?;
            ensure!(read > 0, "the answer does not end");
            filled += read;
            let text = String::from_utf8_lossy(&answer[..filled]);
            ensure!(b"HTTP/1.1 200".starts_with(&answer[..filled.min(12)]), "{text}");
        }
        Ok(())
    }))
}

/// Gives back what it gets.
pub fn tcp_application(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            read => stream.write_all(&buffer[..read])?,
        }
    }
}

/// # Errors
/// When there is no connection.
pub fn tcp(to: SocketAddr) -> Result<Exchange> {
    let mut stream = connected(to)?;
    Ok(Box::new(move || {
        stream.write_all(BYTES)?;
        let mut back = [0; BYTES.len()];
        stream.read_exact(&mut back)?;
        ensure!(&back == BYTES, "other bytes came back");
        Ok(())
    }))
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A message with its length: all that a call sends, and gets. No window is ever used up by those of one run.
const MESSAGE: &[u8] = b"\0\0\0\0\x04done";
const CALL: &[(&str, &str)] = &[
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/weft.Counts/Unary"),
    (":authority", "echo:81"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
];
const HEAD: &[(&str, &str)] = &[(":status", "200"), ("content-type", "application/grpc")];
const TRAILERS: &[(&str, &str)] = &[("grpc-status", "0")];

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
/// Of DATA and HEADERS: the last of its stream. Of SETTINGS and PING: an answer.
const END: u8 = 1;
const END_HEADERS: u8 = 4;

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn read(from: &mut TcpStream) -> io::Result<Self> {
        let mut head = [0; 9];
        from.read_exact(&mut head)?;
        let [a, b, c, kind, flags, id @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        from.read_exact(&mut payload)?;
        Ok(Self { kind, flags, stream: u32::from_be_bytes(id), payload })
    }

    fn last(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END != 0
    }

    /// What the peer waits for an answer to is answered.
    fn acknowledge(&self, to: &mut TcpStream) -> io::Result<()> {
        match self.kind {
            SETTINGS if self.flags & END == 0 => to.write_all(&frame(SETTINGS, END, 0, &[])),
            PING if self.flags & END == 0 => to.write_all(&frame(PING, END, 0, &self.payload)),
            _ => Ok(()),
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("payloads here are short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Fields for HPACK as real peers send them: in full the first time, then as numbers of the table, of which the newest
/// entry has 62. `later` is how many entries have been made after these.
fn fields(fields: &[(&str, &str)], first: bool, later: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, (name, value)) in fields.iter().enumerate() {
        if first {
            bytes.push(0x40);
            for text in [name, value] {
                bytes.push(u8::try_from(text.len()).expect("fields here are short"));
                bytes.extend(text.as_bytes());
            }
        } else {
            bytes.push(0x80 | u8::try_from(62 + later + fields.len() - 1 - index).expect("fields here are few"));
        }
    }
    bytes
}

/// Answers every gRPC call with a message and the status OK.
pub fn grpc_application(mut stream: TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0; PREFACE.len()])?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    let mut first = true;
    loop {
        let got = Frame::read(&mut stream)?;
        got.acknowledge(&mut stream)?;
        if got.last() {
            let mut answer = frame(HEADERS, END_HEADERS, got.stream, &fields(HEAD, first, TRAILERS.len()));
            answer.extend(frame(DATA, 0, got.stream, MESSAGE));
            answer.extend(frame(HEADERS, END_HEADERS | END, got.stream, &fields(TRAILERS, first, 0)));
            stream.write_all(&answer)?;
            first = false;
        }
    }
}

/// # Errors
/// When there is no connection.
pub fn grpc(to: SocketAddr) -> Result<Exchange> {
    let mut stream = connected(to)?;
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat())?;
    let mut id = 1;
    Ok(Box::new(move || {
        let mut call = frame(HEADERS, END_HEADERS, id, &fields(CALL, id == 1, 0));
        call.extend(frame(DATA, END, id, MESSAGE));
        stream.write_all(&call)?;
        let mut answer: Vec<u8> = Vec::new();
        loop {
            let got = Frame::read(&mut stream)?;
            got.acknowledge(&mut stream)?;
            match got.kind {
                DATA => answer.extend(&got.payload),
                RST_STREAM | GOAWAY => bail!("HTTP/2 error in a frame of kind {}: {:?}", got.kind, got.payload),
                _ => {}
            }
            if got.last() {
                break;
            }
        }
        id += 2;
        ensure!(answer == MESSAGE, "not the application's answer: {answer:?}");
        Ok(())
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_gets_its_applications_answer() {
        for (application, client) in [
            (http1_application as fn(TcpStream) -> io::Result<()>, http1 as fn(SocketAddr) -> Result<Exchange>),
            (tcp_application, tcp),
            (grpc_application, grpc),
        ] {
            let mut exchange = client(serve(application).unwrap()).unwrap();
            for _ in 0..3 {
                exchange().unwrap();
            }
        }
        let mut wrong = http1(serve(tcp_application).unwrap()).unwrap();
        assert!(wrong().is_err(), "the request itself is not an answer");
    }
}
