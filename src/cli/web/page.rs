//! The parts that all pages have in common.

use std::fmt::Display;

use super::Site;
use super::guard::Refused;
use super::html::{Html, html};
use super::reply::{Reply, Status};
use crate::cli::out::Stop;
use crate::{ErrorKind, RecordInfo, Status as State};

/// A page that cannot be shown, and why.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) status: Status,
    title: &'static str,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(status: Status, title: &'static str, message: impl Into<String>) -> Self {
        Self { status, title, message: message.into() }
    }

    /// A request that breaks a rule.
    pub(super) fn request(status: Status) -> Self {
        let message = match status {
            Status::NOT_FOUND => "There is no such page here.",
            Status::FORM_TOO_LARGE => {
                "The form has more than 1 MiB. The command `oncekey resolve` stores larger outcomes."
            }
            Status::HEADERS_TOO_LARGE => "The headers have more than 16 KiB.",
            _ => "This is no request that a browser sends from these pages.",
        };
        Self::new(status, status.reason(), message)
    }

    pub(super) fn refused(refused: Refused) -> Self {
        match refused {
            Refused::Host => Self::new(
                Status::MISDIRECTED,
                "Not under this name",
                "This page is served on this machine only, under the address that `oncekey web` printed. A forwarded port must \
                 have the same number on both sides.",
            ),
            Refused::Token => Self::new(
                Status::FORBIDDEN,
                "Not without the whole address",
                "Open the address that `oncekey web` printed. Its long part is a secret, and new for each start.",
            ),
            Refused::Origin => Self::new(
                Status::FORBIDDEN,
                "Not from another page",
                "A change is accepted only from the page itself. Nothing was changed.",
            ),
        }
    }

    pub(super) fn busy() -> Self {
        Self::new(Status::UNAVAILABLE, "The store is busy", "Another view of this page reads the store. Try again.")
    }

    /// A store that cannot be opened, and whose owner cannot be asked.
    pub(super) fn unreachable(stop: Stop) -> Self {
        let fault = Self::from(stop);
        let damaged = fault.status == Status::FAILED;
        if damaged { fault } else { Self { status: Status::UNAVAILABLE, title: UNREACHABLE, ..fault } }
    }
}

const UNREACHABLE: &str = "The store cannot be reached";

impl From<Stop> for Fault {
    fn from(stop: Stop) -> Self {
        let is_too_large = matches!(&stop, Stop::Engine(error) if error.kind() == ErrorKind::TooLarge);
        // The status by which a command would exit.
        let (status, title) = match stop.status() {
            _ if is_too_large => (Status::BAD_REQUEST, "This is not possible"),
            1 => (Status::CONFLICT, "Nothing was changed"),
            2 => (Status::BAD_REQUEST, "This is not possible"),
            4 => (Status::FAILED, "The store is damaged"),
            _ => (Status::UNAVAILABLE, UNREACHABLE),
        };
        Self::new(status, title, stop.message().unwrap_or_default())
    }
}

/// The parts of the site that its navigation names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Overview,
    Records,
}

/// The frame of a page.
pub(super) struct Frame<'a> {
    pub(super) title: &'a str,
    /// The part that the page is, or belongs to.
    pub(super) part: Option<Part>,
    /// True if a browser without scripts reloads the page every few seconds.
    pub(super) refreshes: bool,
    /// True if another process has the store open; `None` if that is not known.
    pub(super) is_live: Option<bool>,
}

impl Frame<'_> {
    /// Returns the whole page.
    pub(super) fn page(&self, site: Option<&Site<'_>>, body: &Html) -> Html {
        let mut page = Html::default();
        html! { page;
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <meta name=\"color-scheme\" content=\"light dark\"><title>" (self.title) " - oncekey</title>"
        }
        // A request without the token gets no style either.
        if let Some(site) = site {
            page.markup(
                "<link rel=\"stylesheet\" href=\"style.css\"><link rel=\"icon\" href=\"icon.svg\" type=\"image/svg+xml\">\
                 <script src=\"script.js\" defer></script>",
            );
            if self.refreshes {
                page.markup("<noscript><meta http-equiv=\"refresh\" content=\"10\"></noscript>");
            }
            page.markup("</head><body><a class=\"skip\" href=\"#main\">Skip to the content</a>");
            self.header(site, &mut page);
        } else {
            page.markup("</head><body>");
        }
        page.markup("<main id=\"main\" tabindex=\"-1\">");
        page.append(body);
        page.markup("</main></body></html>\n");
        page
    }

    fn header(&self, site: &Site<'_>, page: &mut Html) {
        let store = site.store.to_string();
        html! { page;
            "<header class=\"top\"><div class=\"bar\"><a class=\"brand\" href=\"./\"><img src=\"icon.svg\" alt=\"\" width=\"22\" \
             height=\"22\">oncekey</a><span class=\"store\" title=\"" (&store) "\"><bdi>" (&store) "</bdi></span>"
        }
        match self.is_live {
            Some(true) if site.database.is_some() => page.markup("<span class=\"badge live\">on PostgreSQL</span>"),
            Some(true) => page.markup("<span class=\"badge live\">in use by a service</span>"),
            Some(false) => page.markup("<span class=\"badge closed\">not in use</span>"),
            None => {}
        }
        if site.read_only {
            page.markup("<span class=\"badge closed\">read only</span>");
        }
        page.markup("<nav aria-label=\"Pages\">");
        for (part, to, name) in [(Part::Overview, "./", "Overview"), (Part::Records, "records", "Records")] {
            html! { page; "<a href=\"" (to) "\"" }
            if self.part == Some(part) {
                page.markup(" aria-current=\"page\"");
            }
            html! { page; ">" (name) "</a>" }
        }
        page.markup("</nav></div></header>");
    }
}

/// Returns the page of a fault. Without the site, it shows nothing of the store.
pub(super) fn fault(site: Option<&Site<'_>>, fault: &Fault) -> Reply {
    let mut body = Html::default();
    html! { body; "<div class=\"fault\"><h1>" (fault.title) "</h1><p class=\"message\">" (&fault.message) "</p>" }
    if site.is_some() {
        body.markup("<p><a class=\"button\" href=\"./\">Go to the overview</a></p>");
    }
    body.markup("</div>");
    let frame = Frame { title: fault.title, part: None, refreshes: false, is_live: None };
    Reply::html(fault.status, frame.page(site, &body))
}

/// Returns the word of a state in forms and styles, and its name for people.
pub(super) fn state(state: State) -> (&'static str, &'static str) {
    match state {
        State::Interrupted => ("interrupted", "Interrupted"),
        State::InProgress => ("in-progress", "In progress"),
        State::Released => ("released", "Released"),
        State::Failed => ("failed", "Failed"),
        State::Succeeded => ("succeeded", "Succeeded"),
    }
}

/// All states: first those that may need a decision.
pub(super) const STATES: [State; 5] =
    [State::Interrupted, State::InProgress, State::Released, State::Failed, State::Succeeded];

/// Appends the mark of a state.
pub(super) fn mark(of: State, html: &mut Html) {
    let (word, name) = state(of);
    html! { html; "<span class=\"state " (word) "\">" (name) "</span>" }
}

/// Returns the address of a page about a record. All other characters are percent-encoded.
pub(super) fn address(page: &str, info: &RecordInfo, more: &[(&str, &str)]) -> String {
    let key = info.key().to_string();
    let fields = [("manager", info.manager()), ("key", &key)];
    query(page, fields.into_iter().chain(more.iter().copied()))
}

/// Returns the address of a page with these fields.
pub(super) fn query<'a>(page: &str, fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let page = format!("{page}?");
    let start = page.len();
    let mut query = form_urlencoded::Serializer::for_suffix(page, start);
    query.extend_pairs(fields);
    query.finish()
}

/// Returns a number with commas between thousands.
pub(super) fn count(number: u64) -> impl Display {
    indicatif::HumanCount(number)
}
