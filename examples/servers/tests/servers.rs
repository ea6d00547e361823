//! Tests each service with a client over the wire.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use ureq::Agent;

const ADA: &str = r#"{"to":"ada","cents":1999}"#;
const ADA_AGAIN: &str = r#"{ "cents": 1999.0, "to": "ada" }"#;
const EVE: &str = r#"{"to":"eve","cents":1999}"#;

/// A server that is killed when the test ends.
struct Service {
    process: Child,
    address: String,
    client: Agent,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    replayed: bool,
    retry: bool,
    body: String,
}

impl Service {
    fn start(program: &str) -> Self {
        let mut process = Command::new(program).stdout(Stdio::piped()).spawn().unwrap();
        let mut address = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(60)));
        Self { process, address: address.trim().to_owned(), client: config.build().into() }
    }

    fn pay(&self, key: Option<&str>, body: &str) -> Answer {
        let request = self.client.post(format!("http://{}/payments", self.address)).content_type("application/json");
        let request = key.into_iter().fold(request, |request, key| request.header("Idempotency-Key", key));
        let mut answer = request.send(body).unwrap();
        Answer {
            status: answer.status().as_u16(),
            replayed: answer.headers().get("idempotent-replayed").is_some_and(|value| value == "true"),
            retry: answer.headers().contains_key("retry-after"),
            body: answer.body_mut().read_to_string().unwrap(),
        }
    }

    fn refuses(&self, key: Option<&str>, body: &str, status: u16, code: &str) {
        let answer = self.pay(key, body);
        assert_eq!((answer.status, answer.replayed), (status, false), "{answer:?}");
        assert!(answer.body.contains(&format!("\"code\":\"{code}\"")), "{answer:?}");
    }
}

fn drive(program: &str) {
    let service = Service::start(program);
    retries_get_the_first_answer(&service);
    a_body_that_comes_after_its_headers_is_read(&service);
    an_incomplete_body_is_not_executed(&service);
    concurrent_clients_run_the_operation_once(&service);
}

fn retries_get_the_first_answer(service: &Service) {
    let first = service.pay(Some("\"k\""), ADA);
    assert_eq!((first.status, first.replayed, first.body.len()), (201, false, 32), "{first:?}");
    for body in [ADA, ADA_AGAIN] {
        assert_eq!(service.pay(Some("k"), body), Answer { replayed: true, ..service.pay(Some("k"), ADA) });
        assert_eq!(service.pay(Some("k"), body).body, first.body);
    }
    service.refuses(Some("k"), EVE, 422, "mismatch");
    service.refuses(None, ADA, 400, "missing_key");
    service.refuses(Some("\"k"), ADA, 400, "invalid_key");
}

/// The client sends its body after the server has answered another client.
fn a_body_that_comes_after_its_headers_is_read(service: &Service) {
    let mut stream = TcpStream::connect(&service.address).unwrap();
    let head = "POST /payments HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nIdempotency-Key: slow\r\n";
    write!(stream, "{head}Connection: close\r\nContent-Length: {}\r\n\r\n", ADA.len()).unwrap();
    assert_eq!(service.pay(Some("quick"), ADA).status, 201);
    stream.write_all(ADA.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
}

/// The client announces 25 bytes, and hangs up after 10.
fn an_incomplete_body_is_not_executed(service: &Service) {
    let mut stream = TcpStream::connect(&service.address).unwrap();
    let head = "POST /payments HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nIdempotency-Key: half\r\n";
    write!(stream, "{head}Content-Length: {}\r\n\r\n{}", ADA.len(), &ADA[..10]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // Read until the server has answered or closed the connection.
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains(" 201 "), "half a body was paid for");
    let whole = service.pay(Some("half"), ADA);
    assert_eq!((whole.status, whole.replayed), (201, false), "{whole:?}");
}

fn concurrent_clients_run_the_operation_once(service: &Service) {
    let start = Barrier::new(8);
    let answers: Vec<Answer> = thread::scope(|scope| {
        let client = || {
            start.wait();
            loop {
                let answer = service.pay(Some("at once"), ADA);
                if answer.status != 409 {
                    return answer;
                }
                assert!(answer.retry, "{answer:?}");
            }
        };
        let clients = [(); 8].map(|()| scope.spawn(client));
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|answer| !answer.replayed).count(), 1, "{answers:?}");
    assert!(answers.iter().all(|answer| (answer.status, &answer.body) == (201, &answers[0].body)), "{answers:?}");
}

#[test]
fn tiny_http() {
    drive(env!("CARGO_BIN_EXE_tiny_http"));
}

#[test]
fn rouille() {
    drive(env!("CARGO_BIN_EXE_rouille"));
}

#[test]
fn hyper() {
    drive(env!("CARGO_BIN_EXE_hyper"));
}

#[test]
fn axum() {
    drive(env!("CARGO_BIN_EXE_axum"));
}
