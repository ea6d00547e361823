//! Many carts, each requested several times, by a process that is killed in and between all stages.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ChildStdin;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use oncekey::{Engine, Status};

use crate::audit::{self, Row, exactly, row};
use crate::books::Books;
use crate::point::Point;
use crate::process::{ChildProcess, log, say};
use crate::provider::{self, Charge};
use crate::shop::{self, Cart};
use crate::worker::{Answer, Job, Report, Request, Stop, THREADS};

/// The number of requests for each cart.
const TRIES: usize = 3;
/// The number of carts that share one stock of three items. `STOCK` is the number of pieces of each item.
const SEASON: usize = 30;
const STOCK: [usize; 3] = [8, 12, 5];
const WANTED: usize = SEASON / STOCK.len();
/// Larger than needed, so that the process has work at each kill.
const CARTS_PER_KILL: usize = 8;
/// The longest time that a worker may print nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// The moment at which a worker is killed.
#[derive(Clone, Copy, Debug)]
enum Death {
    At(Stop),
    /// This time after the open of the store has started.
    Opening(Duration),
    /// After this number of answers and this time.
    Random(usize, Duration),
    /// The worker is not killed.
    Never,
}

impl Death {
    /// Returns the death of the `n`th worker: every point in turn, and three other moments.
    fn nth(n: usize) -> Self {
        let random = |salt: usize, below: u64| scramble((n * 4 + salt) as u64) % below;
        let moment = |below| Duration::from_micros(random(0, below));
        let few = 1 + usize::try_from(random(1, 4)).unwrap_or(0);
        let deaths = Point::ALL.len() + 3;
        match Point::ALL.get(n % deaths) {
            Some(&point) => Self::At(Stop { point, nth: few }),
            None if n % deaths == Point::ALL.len() => Self::Opening(moment(12_000)),
            None => Self::Random(few * 3, moment(4_000)),
        }
    }
}

/// Returns a random-looking number that is the same in every run, by the finalizer of `SplitMix64`.
fn scramble(n: u64) -> u64 {
    let n = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

fn item(cart: usize) -> String {
    format!("item-{:03}-{}", cart / SEASON, cart % STOCK.len())
}

fn cart(number: usize) -> Cart {
    Cart { id: format!("cart-{number:05}"), item: item(number), cents: 100 + number as u64 }
}

/// Returns the carts in the order of their requests: two requests at once, so that one waits for the other, and one
/// later.
fn order(carts: usize) -> Vec<usize> {
    let places = |cart| [0, 1, TRIES * 12].map(|later| (cart * TRIES + later, cart));
    let mut order: Vec<(usize, usize)> = (0..carts).flat_map(places).collect();
    order.sort_unstable();
    order.into_iter().map(|(_, cart)| cart).collect()
}

/// All requests and their answers.
#[derive(Debug)]
struct Clients {
    /// The cart of each request.
    requests: Vec<usize>,
    waiting: VecDeque<usize>,
    in_flight: BTreeSet<usize>,
    /// The answers, by cart.
    answers: Vec<Vec<Answer>>,
    replays: usize,
    not_yet: usize,
    resent: usize,
    /// The kills, by place.
    kills: BTreeMap<usize, (String, usize)>,
}

/// Runs the test. Returns false if a check fails.
#[expect(clippy::disallowed_methods, reason = "the time it took is printed")]
pub(crate) fn run(kills: usize) -> anyhow::Result<bool> {
    let started = Instant::now();
    let directory = tempfile::Builder::new().prefix("checkout-").tempdir()?;
    let store = directory.path().join("store");
    let seasons = kills * CARTS_PER_KILL / SEASON + 2;
    say(&format!("{} carts, {TRIES} tries each, {kills} kills, in {}\n", seasons * SEASON, store.display()));
    let tested = test(&store, seasons, kills);
    say(&format!("took {:.1} s\n", started.elapsed().as_secs_f64()));
    if !matches!(tested, Ok(true)) {
        log(&format!("FAILED; the store is kept in {}", directory.path().display()));
        std::mem::forget(directory);
    }
    tested
}

fn test(store: &Path, seasons: usize, kills: usize) -> anyhow::Result<bool> {
    let (_process, provider) = provider::start()?;
    let engine = Engine::open(store)?;
    let items = (0..seasons).flat_map(|season| (0..STOCK.len()).map(move |nth| item(season * SEASON + nth)));
    let items: Vec<(String, u64)> = items.zip(STOCK.iter().cycle().map(|&count| count as u64)).collect();
    shop::deliver(&engine, &items)?;
    engine.close()?;
    let mut clients = Clients::new(seasons * SEASON);
    let mut deaths = (0..kills).map(Death::nth);
    while !clients.waiting.is_empty() {
        let death = deaths.next().unwrap_or(Death::Never);
        run_worker(&mut clients, store, provider, death)?;
    }
    let engine = Engine::open(store)?;
    let (books, charges) = (Books::read(&engine)?, provider::charges(provider)?);
    let mut rows = clients.rows(kills);
    rows.extend(compare(&clients, &books, &charges));
    rows.extend(agree_with_the_store(&clients, &engine)?);
    engine.close()?;
    Ok(audit::show(&rows))
}

/// Runs one worker, from its start to its end.
fn run_worker(clients: &mut Clients, store: &Path, provider: SocketAddr, death: Death) -> anyhow::Result<()> {
    let stop = if let Death::At(stop) = death { Some(stop) } else { None };
    let mut worker = Worker::start(&Job { store: store.to_owned(), provider, stop })?;
    let (mut opened, mut answers) = (false, 0);
    clients.send(&mut worker)?;
    while let Some(report) = worker.next_report()? {
        match report {
            Report::Opening => {
                if let Death::Opening(moment) = death {
                    worker.kill_after(moment)?;
                }
            }
            Report::Opened => opened = true,
            Report::Stopped(point) => {
                worker.kill_after(Duration::ZERO)?;
                let place = Point::ALL.iter().position(|known| *known == point).unwrap_or_default();
                clients.count_kill(place, &point.to_string());
            }
            Report::Answered { number, answer, replayed } => {
                clients.add_answer(number, answer, replayed);
                answers += 1;
                if let Death::Random(after, moment) = death {
                    if answers == after {
                        worker.kill_after(moment)?;
                    }
                }
            }
            Report::NotYet { number } => clients.try_later(number),
        }
        if worker.is_alive() {
            clients.send(&mut worker)?;
        }
    }
    worker.check_its_end()?;
    match death {
        Death::Opening(_) if !opened => clients.count_kill(Point::ALL.len(), "while it opened the store"),
        Death::Opening(_) | Death::Random(..) if !worker.is_alive() => {
            clients.count_kill(Point::ALL.len() + 1, "at a random moment");
        }
        _ => {}
    }
    clients.send_again();
    Ok(())
}

#[derive(Debug)]
struct Worker {
    process: ChildProcess,
    /// The input of the worker. `None` when there are no more requests.
    carts: Option<ChildStdin>,
    said: Receiver<String>,
    killed: bool,
}

impl Worker {
    #[expect(clippy::disallowed_methods, reason = "a thread reads, so that a worker that hangs is noticed")]
    fn start(job: &Job) -> anyhow::Result<Self> {
        let (mut process, stdout) = ChildProcess::start(["--worker", &serde_json::to_string(job)?])?;
        let carts = process.child.stdin.take();
        let (sender, said) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { process, carts, said, killed: false })
    }

    fn is_alive(&self) -> bool {
        !self.killed
    }

    /// Returns the next report. Returns `None` if the worker has ended, or a kill has cut its line.
    fn next_report(&self) -> anyhow::Result<Option<Report>> {
        match self.said.recv_timeout(PATIENCE) {
            Ok(line) => match serde_json::from_str(&line) {
                Ok(report) => Ok(Some(report)),
                Err(_) if self.killed => Ok(None),
                Err(why) => Err(why).with_context(|| format!("the worker says {line:?}")),
            },
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => anyhow::bail!("the worker hangs"),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a random moment")]
    fn kill_after(&mut self, moment: Duration) -> anyhow::Result<()> {
        if !self.killed {
            thread::sleep(moment);
            self.process.kill()?;
            self.killed = true;
        }
        Ok(())
    }

    /// Checks that the worker ended by our signal if it was killed, and with success otherwise.
    fn check_its_end(&mut self) -> anyhow::Result<()> {
        let status = self.process.child.wait()?;
        let as_it_must = if self.killed { status.signal() == Some(9) } else { status.success() };
        anyhow::ensure!(as_it_must, "the worker ended with {status}, killed: {}", self.killed);
        Ok(())
    }
}

impl Clients {
    fn new(carts: usize) -> Self {
        let requests = order(carts);
        let (waiting, answers) = ((0..requests.len()).collect(), vec![Vec::new(); carts]);
        let (in_flight, kills) = (BTreeSet::new(), BTreeMap::new());
        Self { requests, waiting, in_flight, answers, replays: 0, not_yet: 0, resent: 0, kills }
    }

    /// Sends requests until each thread has one. Closes the input when none are left, so that the worker ends.
    fn send(&mut self, worker: &mut Worker) -> anyhow::Result<()> {
        while self.in_flight.len() < THREADS {
            let Some(number) = self.waiting.pop_front() else { break };
            self.in_flight.insert(number);
            let cart = cart(self.requests.get(number).copied().context("an unknown request")?);
            let line = serde_json::to_string(&Request { number, cart })?;
            let stdin = worker.carts.as_mut().context("the worker's input is closed")?;
            stdin.write_all(format!("{line}\n").as_bytes()).context("the worker takes no carts any more")?;
        }
        if self.in_flight.is_empty() {
            worker.carts = None;
        }
        Ok(())
    }

    fn add_answer(&mut self, number: usize, answer: Answer, replayed: bool) {
        self.in_flight.remove(&number);
        self.replays += usize::from(replayed);
        if let Some(answers) = self.requests.get(number).and_then(|&cart| self.answers.get_mut(cart)) {
            answers.push(answer);
        }
    }

    fn try_later(&mut self, number: usize) {
        self.in_flight.remove(&number);
        self.not_yet += 1;
        self.waiting.push_front(number);
    }

    /// Queues the requests that the dead worker did not answer, before all others.
    fn send_again(&mut self) {
        self.resent += self.in_flight.len();
        for number in std::mem::take(&mut self.in_flight).into_iter().rev() {
            self.waiting.push_front(number);
        }
    }

    fn count_kill(&mut self, place: usize, what: &str) {
        self.kills.entry(place).or_insert_with(|| (what.to_owned(), 0)).1 += 1;
    }

    fn rows(&self, kills: usize) -> Vec<Row> {
        let done = self.kills.values().map(|(_, count)| count).sum();
        let mut rows = vec![exactly("kills", done, kills)];
        rows.extend(self.kills.values().map(|(what, count)| row(format!("  {what}"), *count)));
        rows.extend([
            exactly("answers", self.answers.iter().map(Vec::len).sum(), self.requests.len()),
            row("  replays", self.replays),
            row("tries that a kill left without an answer", self.resent),
            row("tries whose charge was not answered", self.not_yet),
            exactly(
                "carts that got two different answers",
                self.answers.iter().filter(|answers| differ(answers)).count(),
                0,
            ),
        ]);
        rows
    }
}

fn differ(answers: &[Answer]) -> bool {
    answers.windows(2).any(|two| matches!(two, [a, b] if a != b))
}

/// Compares stock, orders, charges and answers.
fn compare(clients: &Clients, books: &Books, charges: &[Charge]) -> Vec<Row> {
    let by_id: HashMap<&str, &Charge> = charges.iter().map(|charge| (charge.id.as_str(), charge)).collect();
    let paying: BTreeSet<&str> = charges.iter().map(|charge| charge.cart.as_str()).collect();
    let named: BTreeSet<&str> = books.orders.values().map(|order| order.charge.as_str()).collect();
    let is_paid = |(_, order): &(&String, &crate::shop::OrderRow)| {
        by_id.get(order.charge.as_str()).is_some_and(|charge| charge.cart == order.cart)
    };
    let (mut wrong_stock, mut must_be_ordered) = (0, 0);
    for (nth, (item, left)) in books.stock.iter().enumerate() {
        let stock = STOCK.get(nth % STOCK.len()).copied().unwrap_or_default();
        must_be_ordered += stock.min(WANTED);
        wrong_stock += usize::from(stock as u64 != left + books.ordered(item));
    }
    let ids: Vec<String> = (0..clients.answers.len()).map(|number| cart(number).id).collect();
    let sold_out = || {
        ids.iter()
            .zip(&clients.answers)
            .filter(|(_, answers)| matches!(answers.first(), Some(Err(_))))
            .map(|(id, _)| id)
    };
    let is_touched = |id: &&String| paying.contains(id.as_str()) || books.reservations.contains_key(*id);
    let is_wrong_answer = |(id, answers): &(&String, &Vec<Answer>)| match answers.first() {
        Some(Ok(order)) => books
            .orders
            .get(&order.number.to_string())
            .is_none_or(|row| (&row.cart, &row.charge) != (*id, &order.charge)),
        _ => false,
    };
    let disagreements = books.disagreements();
    for wrong in &disagreements {
        log(wrong);
    }
    vec![
        row("charges asked for", charges.iter().map(|charge| charge.asked).sum()),
        exactly("charges", charges.len(), books.orders.len()),
        exactly("orders", books.orders.len(), must_be_ordered),
        exactly("sold out", sold_out().count(), ids.len() - must_be_ordered),
        row("carts that took several attempts", books.carts.values().filter(|cart| cart.attempt() > 1).count()),
        row("  most attempts of one cart", books.carts.values().map(|cart| cart.attempt() as usize).max().unwrap_or(0)),
        exactly("items whose stock and orders disagree", wrong_stock, 0),
        exactly(
            "orders that do not name their charge",
            books.orders.len() - books.orders.iter().filter(is_paid).count(),
            0,
        ),
        exactly(
            "charges without an order",
            charges.iter().filter(|charge| !named.contains(charge.id.as_str())).count(),
            0,
        ),
        exactly("charges that two orders name", books.orders.len() - named.len(), 0),
        exactly("sold out, and charged or reserved", sold_out().filter(is_touched).count(), 0),
        exactly("reservations left", books.reservations.len(), 0),
        exactly("answers that name another order", ids.iter().zip(&clients.answers).filter(is_wrong_answer).count(), 0),
        exactly("rows and records that disagree", disagreements.len(), 0),
    ]
}

/// Compares the stored outcomes with the answers that the clients got.
fn agree_with_the_store(clients: &Clients, engine: &Engine) -> anyhow::Result<Vec<Row>> {
    let carts = shop::carts(engine)?;
    let mut wrong = 0;
    for (number, answers) in clients.answers.iter().enumerate() {
        let record = carts.get(cart(number).id)?;
        let ended = record.filter(|record| matches!(record.status(), Status::Succeeded | Status::Failed));
        let stored = ended.and_then(oncekey::Record::into_outcome);
        wrong += usize::from(stored.is_none() || stored.as_ref() != answers.last());
    }
    Ok(vec![exactly("carts whose record differs from the answer", wrong, 0)])
}
