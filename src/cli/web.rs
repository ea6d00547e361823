//! A page for a browser on this machine, for people who prefer a page to commands.
//!
//! The server listens on loopback only. Each request must have the token that is part of the address, and must name
//! this machine as its host: see `guard`. The pages work without the script. The script only updates the counts, and
//! loads nothing from elsewhere.
//!
//! A store that another process has open is asked through its socket. A store that no process has open is opened for
//! one view or one change at a time, so that a service can start in between. The script never opens it: while no
//! process has the store open, its counts do not change.

mod act;
mod action;
mod guard;
mod html;
mod overview;
mod page;
mod record;
mod records;
mod reply;
mod request;
mod server;

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde_json::json;

use super::location::Location;
use super::out::{Done, Out, Stop};
use super::store::Store;
use super::{Reached, describe::Describers};
use crate::{
    Engine, EngineOptions, ErrorKind,
    admin::LiveStore,
    clock::{Clock as _, SystemClock},
};
use guard::Guard;
use page::Fault;
use reply::{Reply, Status};
use request::{Method, Request};

/// The longest time that a request may read records, or wait for the store.
const TO_LOOK: Duration = Duration::from_secs(30);

/// The arguments of `web`.
#[derive(Debug)]
pub(super) struct Web {
    pub(super) store: Location,
    /// 0 takes a free port.
    pub(super) port: u16,
    pub(super) read_only: bool,
}

/// The store that the pages show.
struct Site<'a> {
    describers: &'a Describers,
    options: EngineOptions,
    /// An absolute path, or an address.
    store: Location,
    /// Reads the database during the life of the page.
    database: Option<Engine>,
    read_only: bool,
    /// Held while this process has the store open: a second open would be refused.
    opening: Mutex<()>,
}

/// Serves pages until the process is interrupted.
pub(super) fn serve(describers: &Describers, options: &EngineOptions, asked: &Web, out: &mut Out<'_>) -> Done {
    let failed = |cause| Stop::Io(format!("find {}", asked.store), cause);
    let store = asked.store.absolute().map_err(failed)?;
    let (options, read_only) = (options.clone(), asked.read_only);
    // If there is no store, fail as the other commands do.
    let database = match super::reach(&options.clone().read_only(true), &store)? {
        Reached::Opened(engine) if store.is_database() => Some(engine),
        reached => reached.work(|store| Ok(store.stats()?)).map(|_| None)?,
    };
    let site = Site { describers, options, store, database, read_only, opening: Mutex::new(()) };
    let failed = |cause: io::Error| Stop::Io(format!("listen on {}:{}", Ipv4Addr::LOCALHOST, asked.port), cause);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, asked.port)).map_err(failed)?;
    let port = listener.local_addr().map_err(failed)?.port();
    let guard = Guard::new(port);
    if out.json {
        out.json(&json!({ "address": guard.address(), "port": port }))?;
    } else {
        out.line(guard.address())?;
        let may = if read_only { "look at" } else { "look at and change" };
        out.line(format_args!(
            "Keep this address secret: it gives the right to {may} {}. Ctrl-C ends the server.",
            site.store
        ))?;
    }
    out.flush()?;
    server::run(&listener, &|request| site.answer(&guard, request));
    Ok(())
}

impl Site<'_> {
    /// Answers a request. Reads the store only for an admitted request.
    fn answer(&self, guard: &Guard, request: Result<&Request, Status>) -> Reply {
        let request = match request {
            Ok(request) => request,
            Err(status) => return page::fault(None, &Fault::request(status)),
        };
        match guard.admit(request) {
            Ok(path) => self.page(path, request).unwrap_or_else(|fault| page::fault(Some(self), &fault)),
            Err(refused) => page::fault(None, &Fault::refused(refused)),
        }
    }

    fn page(&self, path: &str, request: &Request) -> Result<Reply, Fault> {
        match (request.method, path) {
            (Method::Post, "act") => act::act(self, &request.form),
            (Method::Post, _) => Err(Fault::request(Status::METHOD_NOT_ALLOWED)),
            (_, "") => overview::page(self, &request.query),
            (_, "counts") => Ok(overview::counts(self, &request.query)),
            (_, "records") => records::page(self, &request.query),
            (_, "record") => record::page(self, &request.query),
            (_, "outcome") => record::outcome(self, &request.query),
            (_, "act") => act::ask(self, &request.query),
            (_, "style.css") => Ok(Reply::file("text/css; charset=utf-8", include_str!("web/style.css"))),
            (_, "script.js") => Ok(Reply::file("text/javascript; charset=utf-8", include_str!("web/script.js"))),
            (_, "icon.svg") => Ok(Reply::file("image/svg+xml", include_str!("web/icon.svg"))),
            _ => Err(Fault::request(Status::NOT_FOUND)),
        }
    }

    /// Calls `work` with the store, to read it.
    fn look<T>(&self, work: impl FnOnce(&dyn Store) -> Done<T>) -> Result<T, Fault> {
        if let Some(engine) = &self.database {
            return Ok(work(engine)?);
        }
        self.with(&self.options.clone().read_only(true), work)
    }

    /// Calls `work` with the store, to change it.
    fn change<T>(&self, work: impl FnOnce(&dyn Store) -> Done<T>) -> Result<T, Fault> {
        self.with(&self.options, work)
    }

    fn with<T>(&self, options: &EngineOptions, work: impl FnOnce(&dyn Store) -> Done<T>) -> Result<T, Fault> {
        if let Some(live) = self.socket()? {
            return Ok(work(&live)?);
        }
        let Some(_opening) = self.opening.try_lock_for(TO_LOOK) else { return Err(Fault::busy()) };
        let reached = super::reach(options, &self.store).map_err(Fault::unreachable)?;
        Ok(reached.work(work)?)
    }

    /// Returns the store if another process may have it open. Does not open it.
    fn live(&self) -> Result<Option<Box<dyn Store>>, Fault> {
        if let Some(engine) = &self.database {
            return Ok(Some(Box::new(engine.clone())));
        }
        Ok(self.socket()?.map(|live| Box::new(live) as Box<dyn Store>))
    }

    /// Returns the store in a directory that another process has open.
    fn socket(&self) -> Result<Option<LiveStore>, Fault> {
        let Location::Directory(path) = &self.store else { return Ok(None) };
        match LiveStore::connect(path) {
            Ok(live) => Ok(Some(live)),
            // No process has it open, or the process has no socket. An open finds out which.
            Err(none) if none.kind() == ErrorKind::StoreInUse => Ok(None),
            Err(error) => Err(Fault::unreachable(Stop::Engine(error))),
        }
    }
}

/// A moment by which something must have ended. Its clock also counts the time in which the machine is suspended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Duration);

impl Deadline {
    pub(super) fn after(time: Duration) -> Self {
        Self(now().saturating_add(time))
    }

    /// Returns the time that is left. `None` if there is none.
    pub(super) fn left(self) -> Option<Duration> {
        self.0.checked_sub(now()).filter(|left| !left.is_zero())
    }
}

/// Returns a time that steps of the wall clock do not change.
fn now() -> Duration {
    let since_1970 = || SystemClock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemClock.boot().map_or_else(since_1970, |boot| boot.elapsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Manager;

    #[test]
    fn a_described_outcome_is_shown_in_words_and_as_text() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let payments: Manager<u64> = engine.manager("payments").unwrap();
        payments.execute("paid", |_| Ok(1999)).unwrap();
        drop(payments.begin("held").unwrap());
        let describers = Describers::new().manager::<u64, crate::Failure>("payments", 0, |outcome| match outcome {
            Ok(cents) => format!("<b>{cents}</b> cents"),
            Err(why) => format!("declined: {why}"),
        });
        let (options, store) = (Engine::options(), Location::Directory(dir.path().to_owned()));
        let (database, read_only) = (None, false);
        let site = Site { describers: &describers, options, store, database, read_only, opening: Mutex::default() };
        let guard = Guard::new(8080);
        let at = guard.address().replace("http://127.0.0.1:8080", "");
        let shown = |request: String| {
            let request = request::read(&mut request.as_bytes()).unwrap();
            let mut bytes = Vec::new();
            site.answer(&guard, Ok(&request)).write(&mut bytes, false).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        let paid = shown(format!("GET {at}record?manager=payments&key=paid HTTP/1.1\r\nHost: localhost:8080\r\n\r\n"));
        assert!(paid.contains("&lt;b&gt;1999&lt;/b&gt; cents") && paid.starts_with("HTTP/1.1 200 "), "{paid}");
        let revision = engine.raw("payments").unwrap().get("held").unwrap().unwrap().info().revision();
        let confirm = |content: &str| {
            let form = format!(
                "do=resolve&manager=payments&key=held&revision={revision}&how=succeed&form=json&content={content}"
            );
            let head = format!("POST {at}act HTTP/1.1\r\nHost: localhost:8080\r\nOrigin: http://localhost:8080\r\n");
            let kind = "Content-Type: application/x-www-form-urlencoded";
            shown(format!("{head}{kind}\r\nContent-Length: {}\r\n\r\n{form}", form.len()))
        };
        let texts = engine.raw("payments").unwrap();
        let seen = texts.get("held").unwrap().unwrap().info().clone();
        assert!(confirm("7").contains("&lt;b&gt;7&lt;/b&gt; cents"), "{}", confirm("7"));
        assert!(confirm("%22seven%22").starts_with("HTTP/1.1 400 "), "{}", confirm("%22seven%22"));
        assert!(payments.begin("held").unwrap().into_claim().is_err(), "nothing was changed");
        // An outcome of a type that the describers do not expect.
        let text = crate::admin::RawManager::encode(&"text".to_owned()).unwrap();
        texts.resolve_if_unchanged(&seen, crate::admin::Resolution::Succeed(text)).unwrap();
        let other = shown(format!("GET {at}record?manager=payments&key=held HTTP/1.1\r\nHost: localhost:8080\r\n\r\n"));
        assert!(other.starts_with("HTTP/1.1 200 ") && other.contains("Save the stored bytes"), "{other}");
    }
}
