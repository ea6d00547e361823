//! The numbers of records by manager and state.

use super::html::{Html, html};
use super::page::{self, Fault, Frame, Part, STATES, count};
use super::reply::{Reply, Status};
use super::request::Fields;
use super::{Deadline, Site, TO_LOOK};
use crate::cli::out::{Done, Stop, size};
use crate::cli::show::Summary;
use crate::cli::store::Store;
use crate::{
    Status as State,
    admin::{Stats, StatusUsage},
};

/// The least number of milliseconds between two counts.
const PAUSE: u64 = 2_000;
/// The pause after a count is at least this many times as long as the count took.
const SHARE: u64 = 20;

/// Returns the whole page.
pub(super) fn page(site: &Site<'_>, query: &Fields) -> Result<Reply, Fault> {
    let refreshes = query.get("refresh") == "on";
    let (is_live, content) = site.look(|store| Ok((store.is_live(), content(store)?)))?;
    let mut body = Html::default();
    body.markup("<div class=\"title\"><h1>Overview</h1><p class=\"note\" id=\"note\" role=\"status\">");
    match (is_live, refreshes) {
        (false, _) => body.markup("Nothing changes while no process has the store open."),
        (true, true) => body.markup("<noscript>Counted again every 10 seconds. <a href=\"./\">Stop</a></noscript>"),
        (true, false) => body.markup("<noscript><a href=\"./?refresh=on\">Count again every 10 seconds</a></noscript>"),
    }
    body.markup("</p></div><div id=\"counts\">");
    body.append(&content);
    body.markup("</div>");
    let frame = Frame {
        title: "Overview",
        part: Some(Part::Overview),
        refreshes: refreshes && is_live,
        is_live: Some(is_live),
    };
    Ok(Reply::html(Status::OK, frame.page(Some(site), &body)))
}

/// Returns the content of the page, if it has changed since it was `seen`. Never opens the store.
pub(super) fn counts(site: &Site<'_>, query: &Fields) -> Reply {
    let looked = site.live().and_then(|live| {
        let Some(live) = live else { return Ok(None) };
        // The commits of other engines are counted by those engines.
        let is_as_seen = !live.is_database() && tag(Some(&live.stats().map_err(Stop::Engine)?)) == query.get("seen");
        if is_as_seen { Ok(Some(None)) } else { Ok(Some(Some(content(&*live)?))) }
    });
    match looked {
        Ok(Some(Some(content))) => Reply::html(Status::OK, content),
        Ok(Some(None)) => Reply::unchanged(),
        Ok(None) if query.get("seen") == tag(None) => Reply::unchanged(),
        Ok(None) => {
            let message = "The service has closed the store. Reload the page to look into it.";
            Reply::text(Status::UNAVAILABLE, message.to_owned())
        }
        Err(fault) => Reply::text(fault.status, fault.message),
    }
}

/// Returns a text that changes when records change. A record that expires counts as changed when it is deleted.
fn tag(running: Option<&Stats>) -> String {
    running.map_or_else(
        || "closed".to_owned(),
        |running| {
            let Stats { commits, expired, in_progress, interrupted, .. } = running;
            format!("{commits}.{expired}.{in_progress}.{interrupted}")
        },
    )
}

fn content(store: &dyn Store) -> Done<Html> {
    let until = Deadline::after(TO_LOOK);
    let summary = Summary::of(store, || until.left().is_some())?;
    let spent = TO_LOOK.saturating_sub(until.left().unwrap_or_default());
    let pause = PAUSE.max(SHARE.saturating_mul(u64::try_from(spent.as_millis()).unwrap_or(u64::MAX)));
    let mut html = Html::default();
    let seen = tag(store.is_live().then_some(&summary.running));
    html! { html; "<div data-seen=\"" (seen) "\" data-pause=\"" (pause) "\">" }
    if !summary.is_complete {
        let seconds = TO_LOOK.as_secs();
        html! { html;
            "<p class=\"flash bad\">Counting all records takes longer than " (seconds) " s: these are the first ones, in the order \
             of managers and keys. The command <code>oncekey stats</code> counts all.</p>"
        }
    }
    tiles(&summary, &mut html);
    managers(&summary, &mut html);
    html.markup("<section aria-labelledby=\"about\"><h2 id=\"about\">About the store</h2><dl class=\"facts\">");
    for (name, value) in summary.facts(store) {
        html! { html; "<div><dt>" (name) "</dt><dd>" (value) "</dd></div>" }
    }
    html.markup("</dl></section></div>");
    Ok(html)
}

/// The numbers of all managers together.
fn tiles(summary: &Summary, html: &mut Html) {
    html.markup("<ul class=\"tiles\">");
    for state in STATES {
        let number: u64 = summary.managers.values().map(|used| used.status(state).records).sum();
        let (word, name) = page::state(state);
        let to = page::query("records", [("status", word)]);
        html! { html;
            "<li><a class=\"tile " (word) "\" href=\"" (to) "\"><span class=\"number\">" (count(number))
            "</span><span class=\"state " (word) "\">" (name) "</span>"
        }
        if state == State::Interrupted && number > 0 {
            html.markup("<span class=\"hint\">to be resolved</span>");
        }
        html.markup("</a></li>");
    }
    html.markup("</ul>");
}

fn managers(summary: &Summary, html: &mut Html) {
    html.markup("<section aria-labelledby=\"managers\"><h2 id=\"managers\">Managers</h2>");
    if summary.managers.is_empty() {
        return html.markup("<p class=\"empty\">No records.</p></section>");
    }
    html.markup("<div class=\"wide\"><table class=\"numbers\"><thead><tr><th scope=\"col\">Manager</th>");
    for state in STATES {
        let (word, name) = page::state(state);
        html! { html; "<th scope=\"col\"><span class=\"state " (word) "\">" (name) "</span></th>" }
    }
    html.markup("<th scope=\"col\">Outcomes</th></tr></thead><tbody>");
    for (manager, used) in &summary.managers {
        let to = page::query("records", [("manager", manager.as_str())]);
        html! { html; "<tr><th scope=\"row\"><a href=\"" (to) "\">" (manager) "</a></th>" }
        for state in STATES {
            let (word, name) = page::state(state);
            let StatusUsage { records, .. } = used.status(state);
            html! { html; "<td data-name=\"" (name) "\">" }
            if records == 0 {
                html.markup("<span class=\"none\">0</span></td>");
            } else {
                let to = page::query("records", [("manager", manager.as_str()), ("status", word)]);
                html! { html; "<a href=\"" (to) "\">" (count(records)) "</a></td>" }
            }
        }
        html! { html; "<td data-name=\"Outcomes\">" (size(used.outcome_bytes())) "</td></tr>" }
    }
    html.markup("</tbody></table></div></section>");
}
