//! A minimal client of `oncekey web`, which runs as a process of its own.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value as Json;

use crate::threads::LATE;

/// A running `oncekey web`. Drop ends it.
pub(crate) struct Site {
    child: Child,
    pub(crate) address: String,
    pub(crate) port: u16,
    /// `/TOKEN/`
    pub(crate) root: String,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oncekey"));
    command.arg("web").args(args).stdin(Stdio::null());
    command
}

impl Site {
    pub(crate) fn start(store: &Path, args: &[&str]) -> Self {
        let mut command = command(&[&[store.to_str().unwrap(), "--json"], args].concat());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let started: Json = serde_json::from_str(&line).unwrap();
        let address = started["address"].as_str().unwrap().to_owned();
        let port = u16::try_from(started["port"].as_u64().unwrap()).unwrap();
        let root = address.strip_prefix(&format!("http://127.0.0.1:{port}")).unwrap().to_owned();
        Self { child, address, port, root }
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.host()).unwrap();
        stream.set_read_timeout(Some(LATE)).unwrap();
        stream.set_write_timeout(Some(LATE)).unwrap();
        stream
    }

    /// Sends a request with exactly these bytes.
    pub(crate) fn raw(&self, request: &str) -> Shown {
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        Shown::read(&mut stream)
    }

    /// Gets a page below the token.
    pub(crate) fn get(&self, page: &str) -> Shown {
        self.raw(&format!("GET {}{page} HTTP/1.1\r\nHost: {}\r\n\r\n", self.root, self.host()))
    }

    /// Gets a page with these fields.
    pub(crate) fn query(&self, page: &str, fields: &[(&str, &str)]) -> Shown {
        self.get(&format!("{page}?{}", encode(fields)))
    }

    pub(crate) fn post(&self, fields: &[(&str, &str)]) -> Shown {
        self.post_from(&format!("Origin: http://{}\r\n", self.host()), fields)
    }

    /// Posts a form with these headers.
    pub(crate) fn post_from(&self, headers: &str, fields: &[(&str, &str)]) -> Shown {
        let (form, host) = (encode(fields), self.host());
        self.raw(&format!(
            "POST {}act HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
            self.root,
            form.len()
        ))
    }

    /// Follows the links and forms of a change as a person does, and returns the page after it.
    pub(crate) fn act(&self, manager: &str, key: &str, act: &str, outcome: &[(&str, &str)]) -> Shown {
        let at = [("manager", manager), ("key", key)];
        let record = self.query("record", &at);
        let to = format!("act?{}", encode(&[&at[..], &[("do", act)]].concat()));
        assert!(record.body.contains(&escape(&to)), "{act} is not offered: {}", record.body);
        let mut asked = self.get(&to);
        if !outcome.is_empty() {
            asked = self.post(&[&hidden(&asked.body), outcome].concat());
        }
        let fields = hidden(&asked.body);
        assert!(fields.contains(&("confirmed", "yes")), "{act} is not asked for: {}", asked.body);
        let done = self.post(&fields);
        match done.header("location") {
            Some(to) if done.status == 303 => self.get(to),
            _ => done,
        }
    }
}

/// A reply, as a browser receives it.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
    pub(crate) bytes: Vec<u8>,
}

impl Shown {
    pub(crate) fn read(stream: &mut TcpStream) -> Self {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        let end = all.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or_else(|| panic!("no head: {all:?}"));
        let head = String::from_utf8(all[..end].to_vec()).unwrap();
        let bytes = all[end + 4..].to_vec();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head, body: String::from_utf8_lossy(&bytes).into_owned(), bytes }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers.filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    #[track_caller]
    pub(crate) fn contains(&self, texts: &[&str]) -> &Self {
        for text in texts {
            assert!(self.body.contains(text), "{text} is not in {}", self.body);
        }
        self
    }

    #[track_caller]
    pub(crate) fn lacks(&self, texts: &[&str]) -> &Self {
        for text in texts {
            assert!(!self.body.contains(text), "{text} is in {}", self.body);
        }
        self
    }
}

/// Returns the hidden fields of a page. Their values must have no characters that are escaped.
fn hidden(page: &str) -> Vec<(&str, &str)> {
    let fields = page.split("<input type=\"hidden\" name=\"").skip(1);
    fields
        .map(|field| {
            let (name, rest) = field.split_once("\" value=\"").unwrap();
            (name, rest.split_once('"').unwrap().0)
        })
        .collect()
}

/// Encodes fields as a form does.
pub(crate) fn encode(fields: &[(&str, &str)]) -> String {
    let escaped = |text: &str| {
        let mut escaped = String::new();
        for byte in text.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' => escaped.push(char::from(byte)),
                b' ' => escaped.push('+'),
                _ => write!(escaped, "%{byte:02X}").unwrap(),
            }
        }
        escaped
    };
    let pairs = fields.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value)));
    pairs.collect::<Vec<_>>().join("&")
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}
