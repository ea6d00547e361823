//! Tests of `oncekey web` in a headless browser, driven through `WebDriver`.
//!
//! `apt-get install chromium chromium-driver`, and then
//! `cargo test --test it browser -- --ignored`. With `ONCEKEY_SCREENSHOTS=DIR` it stores pictures of the pages.

use std::fmt::Debug;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use oncekey::{Engine, Failure, Manager, Status, http::Response};
use serde_json::{Value as Json, json};

use crate::common::*;
use crate::pages::Site;
use crate::threads::{LATE, until, within};

/// The name of an element in replies of `WebDriver`.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window. Drop ends it.
struct Browser {
    driver: Child,
    port: u16,
    session: String,
}

impl Drop for Browser {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_failures();
        }
        // Ends the browser, which the driver has started. Ignore a failure: the test may have failed by it.
        let _ = self.try_send("DELETE", &format!("/session/{}", self.session), &Json::Null);
        self.driver.kill().unwrap();
        self.driver.wait().unwrap();
    }
}

impl Browser {
    fn start() -> Self {
        let driver = Command::new("chromedriver").arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut driver = driver.unwrap_or_else(|cause| {
            panic!("chromedriver is missing ({cause}): apt-get install chromium chromium-driver")
        });
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines
            .find_map(|line| line.unwrap().split_once("successfully on port ")?.1.trim_end_matches('.').parse().ok());
        let mut browser = Self { driver, port: port.unwrap(), session: String::new() };
        let options = json!({ "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1200,900"] });
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": { "performance": "ALL", "browser": "ALL" },
        } } });
        let started = browser.send("POST", "/session", &wanted);
        let session = started["value"]["sessionId"].as_str();
        let session = session.unwrap_or_else(|| panic!("chromium is missing or does not start: {started}"));
        session.clone_into(&mut browser.session);
        // A click returns before the next page is there: the driver waits for an element that is looked for.
        browser.post("/timeouts", &json!({ "implicit": LATE.as_millis() }));
        browser
    }

    fn send(&self, method: &str, path: &str, body: &Json) -> Json {
        self.try_send(method, path, body).unwrap()
    }

    fn try_send(&self, method: &str, path: &str, body: &Json) -> io::Result<Json> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(LATE))?;
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let length = body.len();
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {length}\r\n\r\n{body}")?;
        // The driver keeps the connection open.
        let mut reply = BufReader::new(stream);
        let (mut line, mut length) = (String::new(), 0);
        while line != "\r\n" {
            line.clear();
            reply.read_line(&mut line)?;
            let header = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            length = header.map_or(length, |(_, value)| value.trim().parse().unwrap());
        }
        Ok(serde_json::from_reader(reply.take(length))?)
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: &Json) -> Json {
        let mut reply = self.send(method, &format!("/session/{}{path}", self.session), body);
        assert!(reply["value"]["error"].is_null(), "{method} {path} {body}: {reply}");
        reply["value"].take()
    }

    fn post(&self, path: &str, body: &Json) -> Json {
        self.ask("POST", path, body)
    }

    fn go(&self, address: &str) {
        self.post("/url", &json!({ "url": address }));
        // On a busy machine the driver may return before the style and the script of the page are there.
        let is_there = format!("return location.href === {} && document.readyState === 'complete'", json!(address));
        until(address, || self.run(&is_there) == true);
    }

    fn find(&self, selector: &str) -> Option<String> {
        let found = self.post("/elements", &json!({ "using": "css selector", "value": selector }));
        found[0][ELEMENT].as_str().map(str::to_owned)
    }

    #[track_caller]
    fn click(&self, selector: &str) {
        let element = self.find(selector).unwrap_or_else(|| panic!("no {selector} in {}", self.text()));
        self.post(&format!("/element/{element}/click"), &json!({}));
    }

    fn type_into(&self, selector: &str, text: &str) {
        let element = self.find(selector).unwrap_or_else(|| panic!("no {selector} in {}", self.text()));
        self.post(&format!("/element/{element}/value"), &json!({ "text": text }));
    }

    /// Presses keys, one after the other, where the focus is.
    fn press(&self, keys: &str) {
        let events: Vec<Json> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key })))
            .collect();
        self.post("/actions", &json!({ "actions": [{ "type": "key", "id": "keys", "actions": events }] }));
    }

    /// Moves the focus by the tabulator until it is on such an element. It must be visible there.
    fn tab_to(&self, selector: &str) {
        for _ in 0..100 {
            self.press("\u{E004}");
            let element = "document.activeElement";
            if self.run(&format!("return {element}.matches('{selector}')")) == true {
                let ring = self.run(&format!("return getComputedStyle({element}).outlineStyle"));
                assert_eq!(ring, "solid", "{selector} has the focus");
                return;
            }
        }
        panic!("the tabulator does not lead to {selector}: {}", self.text());
    }

    fn run(&self, script: &str) -> Json {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    fn text(&self) -> String {
        self.run("return document.body.innerText").as_str().unwrap().to_owned()
    }

    fn shows(&self, text: &str) {
        until(text, || self.text().contains(text));
    }

    fn devtools(&self, command: &str, params: &Json) {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": params }));
    }

    fn set_scheme(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": features }));
    }

    fn set_width(&self, width: u32) {
        let size = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
    }

    /// Stores a picture of the whole page, if pictures are wanted.
    fn picture(&self, name: &str) {
        let Some(dir) = std::env::var_os("ONCEKEY_SCREENSHOTS").map(PathBuf::from) else { return };
        let params = json!({ "captureBeyondViewport": true });
        let shot = self.post("/goog/cdp/execute", &json!({ "cmd": "Page.captureScreenshot", "params": params }));
        let png = base64::prelude::BASE64_STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("{name}.png")), png).unwrap();
    }

    fn log(&self, kind: &str) -> Vec<Json> {
        self.post("/se/log", &json!({ "type": kind })).as_array().unwrap().clone()
    }

    /// Prints the requests that have failed, and the complaints of the browser.
    fn print_failures(&self) {
        for kind in ["performance", "browser"] {
            let path = format!("/session/{}/se/log", self.session);
            let Ok(reply) = self.try_send("POST", &path, &json!({ "type": kind })) else { return };
            for entry in reply["value"].as_array().into_iter().flatten() {
                let message = entry["message"].as_str().unwrap_or_default();
                if kind == "browser" || message.contains("Network.loadingFailed") {
                    println!("{message}");
                }
            }
        }
    }

    /// Checks that the browser has asked only this site, and that its policy has stopped nothing.
    #[track_caller]
    fn check_logs(&self, site: &Site) {
        let mut asked = 0;
        for entry in self.log("performance") {
            let entry: Json = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
            let (message, url) = (&entry["message"], &entry["message"]["params"]["request"]["url"]);
            if message["method"] == "Network.requestWillBeSent" {
                let url = url.as_str().unwrap();
                assert!(url.starts_with(&site.address) || url.starts_with("data:"), "{url}");
                asked += 1;
            }
        }
        assert!(asked > 10, "{asked}");
        // Pages of errors, which have a status of their own, are complaints of the network.
        let complaints: Vec<Json> =
            self.log("browser").into_iter().filter(|entry| entry["source"] != "network").collect();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}

/// Fills a store as a service does. `held` stays in progress.
fn fill(engine: &Engine) -> (Manager<String>, impl Debug) {
    let payments: Manager<String> = engine.manager("payments").unwrap();
    for n in 0..64 {
        let begin = same("r").context(about("user", "ada"));
        claimed(payments.begin_with(format!("order-{n:04}"), begin).unwrap()).succeed(&"receipt".to_owned()).unwrap();
    }
    for n in 0..3 {
        claim(&payments, &format!("order-2{n:03}")).fail(&Failure::new("the card was declined")).unwrap();
        drop(claim(&payments.scoped("user-7").unwrap(), &format!("order-3{n:03}")));
    }
    drop(claim(&payments, "<script>alert(1)</script>"));
    claim(&payments, "order-4000").release().unwrap();
    let held = claim(&payments, "order-5000");
    let requests: Manager<Response> = engine.manager("http").unwrap();
    let response = Response::new(http::StatusCode::CREATED)
        .header(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"))
        .body(r#"{"id":"ch_1","amount":1999,"currency":"EUR","captured":true}"#);
    claim(&requests, "POST-charges-7").succeed(&response).unwrap();
    drop(claim(&requests, "POST-charges-8"));
    (payments, held)
}

#[test]
#[ignore = "needs chromium and chromedriver"]
fn a_person_follows_the_counts_and_releases_a_key_by_keyboard() {
    within(4 * LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("payments.oncekey");
        let engine = Engine::open(&path).unwrap();
        let (payments, _held) = fill(&engine);
        let site = Site::start(&path, &[]);
        let browser = Browser::start();
        browser.go(&site.address);
        browser.shows("Counts follow the service.");
        let interrupted = || browser.run("return document.querySelector('.tile.interrupted .number').textContent");
        assert_eq!(interrupted(), "5");

        // The counts change by themselves, and the focus stays.
        browser.run("document.querySelector('.tile.failed').focus()");
        drop(claim(&payments, "order-6000"));
        until("the page counts again", || interrupted() == "6");
        assert_eq!(browser.run("return document.activeElement.className"), "tile failed");

        // Search, open the record, release it after a confirmation.
        browser.go(&format!("{}records", site.address));
        browser.press("/");
        browser.press("order-6\u{E007}");
        browser.shows("Records 1 to 1");
        browser.tab_to("a.key");
        browser.press("\u{E007}");
        browser.shows("Effect ids");
        browser.tab_to(".actions a");
        browser.press("\u{E007}");
        browser.shows("Release the key only if you know");
        assert_eq!(status(&payments, "order-6000"), Some(Status::Interrupted), "a confirmation comes first");
        browser.tab_to("button.danger");
        browser.press("\u{E007}");
        browser.shows("The key is released");
        assert_eq!(status(&payments, "order-6000"), Some(Status::Released));
        browser.check_logs(&site);
    });
}

#[test]
#[ignore = "needs chromium and chromedriver"]
fn a_person_stores_an_outcome_undoes_that_and_revokes_by_mouse() {
    within(4 * LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let (payments, held) = fill(&engine);
        let site = Site::start(dir.path(), &[]);
        let browser = Browser::start();
        // Store an outcome. Fields of responses are hidden for others.
        browser.go(&format!("{}record?manager=payments&key=/user-7/order-3001", site.address));
        browser.click("a[href*='do=resolve']");
        let is_hidden = || browser.run("return document.querySelector('input[name=code]').offsetParent === null");
        assert_eq!(is_hidden(), true);
        browser.click("input[value=response]");
        assert_eq!(is_hidden(), false);
        browser.click("input[value=fail]");
        browser.type_into("textarea[name=content]", "the card was declined twice");
        browser.click("button.primary");
        browser.shows("Every request with this key will get:");
        browser.click("button.danger");
        browser.shows("The outcome is stored");
        browser.click("a[href*='do=undo']");
        browser.click("button.danger");
        browser.shows("The resolution is undone");
        browser.go(&format!("{}record?manager=payments&key=order-5000", site.address));
        browser.click("a[href*='do=revoke']");
        browser.click("button.danger");
        browser.shows("The owner has lost the key");

        // A key that would be a script is text.
        browser.go(&format!("{}records?contains=script", site.address));
        browser.click("a.key");
        browser.shows("<script>alert(1)</script>");
        browser.check_logs(&site);
        drop(held);

        // The end of the service, and of the command.
        browser.go(&site.address);
        browser.shows("Counts follow the service.");
        drop(payments);
        engine.close().unwrap();
        browser.shows("The service has closed the store.");
        drop(site);
        browser.shows("The command oncekey web has ended");
    });
}

#[test]
#[ignore = "needs chromium and chromedriver"]
fn everything_works_without_a_script() {
    within(4 * LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path()).unwrap();
        let (payments, _held) = fill(&engine);
        let site = Site::start(dir.path(), &[]);
        let browser = Browser::start();
        browser.devtools("Emulation.setScriptExecutionDisabled", &json!({ "value": true }));
        browser.go(&site.address);
        browser.click("a[href='./?refresh=on']");
        assert!(browser.find("meta[http-equiv=refresh]").is_some());
        browser.click(".tile.interrupted");
        browser.click("a[href*='order-3001']");
        browser.click("a[href*='do=release']");
        browser.click("button.danger");
        assert!(browser.find(".flash.good").is_some());
        assert_eq!(status(&payments.scoped("user-7").unwrap(), "order-3001"), Some(Status::Released));
        browser.go(&format!("{}record?manager=payments&key=/user-7/order-3002", site.address));
        browser.click("a[href*='do=resolve']");
        browser.type_into("textarea[name=content]", "receipt");
        browser.click("button.primary");
        browser.click("button.danger");
        assert!(browser.find(".flash.good").is_some());
        assert_eq!(outcome(&payments.scoped("user-7").unwrap(), "order-3002").unwrap().unwrap(), "receipt");
        browser.check_logs(&site);
    });
}

/// The contrast of all visible text with its background, and widths at which a page must not scroll sideways.
const FAULTS: &str = r"
    const channel = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const rgba = text => { const n = text.match(/[\d.]+/g).map(Number); return [n[0], n[1], n[2], n[3] ?? 1]; };
    const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
    const back = element => {
      const layers = [];
      for (let e = element; e; e = e.parentElement) { layers.push(rgba(getComputedStyle(e).backgroundColor)); }
      return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
    };
    const faults = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = texts.nextNode(); node; node = texts.nextNode()) {
      const element = node.parentElement;
      if (!node.textContent.trim() || !element.checkVisibility() || element.closest('noscript, option, .skip')) { continue; }
      let opacity = 1;
      for (let e = element; e; e = e.parentElement) { opacity *= Number(getComputedStyle(e).opacity); }
      const own = rgba(getComputedStyle(element).color), below = back(element);
      const one = light(over([own[0], own[1], own[2], own[3] * opacity], below)), other = light(below);
      const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
      if (contrast < 4.5) { faults.push(`${node.textContent.trim()}: ${contrast.toFixed(2)}`); }
    }
    const root = document.documentElement;
    if (root.scrollWidth > root.clientWidth) { faults.push(`the page is ${root.scrollWidth} wide, the window ${root.clientWidth}`); }
    for (const part of document.querySelectorAll('.wide, .tiles')) {
      if (part.scrollWidth > part.clientWidth) { faults.push(`${part.className} is cut off`); }
    }
    for (const control of document.querySelectorAll('input:not([type=hidden]), select, textarea')) {
      if (!control.labels || !control.labels.length) { faults.push(`${control.name} has no label`); }
    }
    return faults;
";

#[test]
#[ignore = "needs chromium and chromedriver"]
fn the_pages_are_readable_light_dark_and_narrow() {
    within(4 * LATE, || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("payments.oncekey");
        let engine = Engine::open(&path).unwrap();
        let (_payments, _held) = fill(&engine);
        let site = Site::start(&path, &[]);
        let browser = Browser::start();
        let pages = [
            ("overview", "./"),
            ("records", "records"),
            ("few", "records?status=interrupted"),
            ("filters", "records?older-than=soon&sort=changed"),
            ("none", "records?contains=nothing"),
            ("record", "record?manager=http&key=POST-charges-7&effect=charge"),
            ("interrupted", "record?manager=payments&key=/user-7/order-3001"),
            ("context", "record?manager=payments&key=order-0007"),
            ("confirm", "act?manager=payments&key=/user-7/order-3001&do=release"),
            ("resolve", "act?manager=payments&key=/user-7/order-3001&do=resolve"),
            ("missing", "record?manager=payments&key=missing"),
        ];
        for (scheme, width) in [("light", 1200), ("dark", 1200), ("light", 390), ("dark", 390), ("light", 800)] {
            browser.set_scheme(scheme);
            browser.set_width(width);
            for (name, page) in pages {
                browser.go(&format!("{}{}", site.address, page.trim_start_matches("./")));
                browser.picture(&format!("{name}-{scheme}-{width}"));
                let faults = browser.run(FAULTS);
                assert_eq!(faults, json!([]), "{name}, {scheme}, {width} wide");
            }
        }
        browser.check_logs(&site);
    });
}
