//! One record in full.

use super::Site;
use super::action::Act;
use super::html::{Html, html};
use super::page::{self, Fault, Frame, Part};
use super::reply::{Reply, Status};
use super::request::Fields;
use crate::cli::out::{Done, Stop};
use crate::cli::show;
use crate::cli::typed_key::TypedKey;
use crate::{Record, RecordInfo, Value};

/// The fields that tell the history of a record, in this order.
const HISTORY: [&str; 9] =
    ["created", "earlier", "interrupted", "attempt", "claimed", "reached", "changed", "waits", "expires"];
/// The fields that the head of the page shows.
const HEAD: [&str; 4] = ["manager", "key", "status", "resolved"];

/// Returns the key that the fields name.
pub(super) fn typed_key(fields: &Fields) -> TypedKey {
    TypedKey { manager: fields.get("manager").to_owned(), key: fields.get("key").into() }
}

/// Returns the fault of a page about a record that does not exist.
fn missing(fault: Fault) -> Fault {
    if fault.status != Status::CONFLICT {
        return fault;
    }
    Fault::new(Status::NOT_FOUND, "There is no such record", fault.message)
}

pub(super) fn page(site: &Site<'_>, query: &Fields) -> Result<Reply, Fault> {
    let typed = typed_key(query);
    let (is_live, record) = site.look(|store| Ok((store.is_live(), typed.record(store)?))).map_err(missing)?;
    // An outcome of another type than the program knows is shown as the reason why it cannot be described.
    let described = site.describers.describe(&record).unwrap_or_else(|error| Some(error.to_string()));
    let info = record.info();
    let mut body = Html::default();
    if let Some(act) = Act::named(query.get("done")).filter(|act| act.is_done(info)) {
        html! { body; "<p class=\"flash good\" role=\"status\">" (act.report()) "</p>" }
    }
    head(info, &mut body);
    if !site.read_only {
        actions(info, &mut body);
    }
    outcome_section(&record, described, &mut body);
    let facts = show::facts(info);
    body.markup("<div class=\"columns\"><section aria-labelledby=\"history\"><h2 id=\"history\">History</h2><dl class=\"facts\">");
    for name in HISTORY {
        facts.iter().filter(|(other, _)| *other == name).for_each(|fact| line(fact, &mut body));
    }
    body.markup("</dl></section><section aria-labelledby=\"fields\"><h2 id=\"fields\">Fields</h2><dl class=\"facts\">");
    let rest = facts.iter().filter(|(name, _)| !HISTORY.contains(name) && !HEAD.contains(name) && *name != "context");
    rest.for_each(|fact| line(fact, &mut body));
    body.markup("</dl></section></div>");
    context(&facts, &mut body);
    effect(info, query.get("effect"), &mut body);
    let title = info.key().to_string();
    let frame = Frame { title: &title, part: Some(Part::Records), refreshes: false, is_live: Some(is_live) };
    Ok(Reply::html(Status::OK, frame.page(Some(site), &body)))
}

/// Returns the bytes of the outcome, as they are stored.
pub(super) fn outcome(site: &Site<'_>, query: &Fields) -> Result<Reply, Fault> {
    let typed = typed_key(query);
    let bytes = site.look(|store| -> Done<Vec<u8>> {
        let record = typed.record(store)?;
        let none = || Stop::Nothing(format!("key {} has no outcome", record.info().key()));
        let (Ok(bytes) | Err(bytes)) = record.outcome().ok_or_else(none)?;
        Ok(bytes.to_vec())
    });
    bytes.map(Reply::download).map_err(missing)
}

/// Appends the name and the state of the record.
pub(super) fn head(info: &RecordInfo, html: &mut Html) {
    let of_manager = page::query("records", [("manager", info.manager())]);
    html! { html;
        "<div class=\"title\"><div><p class=\"path\"><a href=\"records\">Records</a> / <a href=\"" (of_manager) "\">" (info.manager())
        "</a></p><h1 class=\"key\"><bdi>" (info.key()) "</bdi></h1></div><p class=\"is\">"
    }
    page::mark(info.status(), html);
    if let Some(why) = info.interruption() {
        html! { html; "<span class=\"why\">" (format_args!("{why:?}")) "</span>" }
    }
    html.markup("</p></div>");
}

fn actions(info: &RecordInfo, html: &mut Html) {
    let acts: Vec<Act> = Act::ALL.into_iter().filter(|act| act.is_possible(info)).collect();
    if acts.is_empty() {
        return;
    }
    html.markup("<div class=\"actions\">");
    for act in acts {
        let to = page::address("act", info, &[("do", act.word())]);
        html! { html; "<a class=\"button\" href=\"" (to) "\">" (act.name()) "</a>" }
    }
    html.markup("</div>");
    if info.is_undoable() {
        html.markup("<p class=\"note\">The record was resolved, and no caller has received the result yet.</p>");
    }
}

fn outcome_section(record: &Record<Value, Value>, described: Option<String>, html: &mut Html) {
    html.markup("<section aria-labelledby=\"outcome\"><h2 id=\"outcome\">Outcome</h2>");
    match show::payload(record, described) {
        None => html.markup("<p class=\"empty\">None.</p>"),
        Some((what, text)) => {
            let to = page::address("outcome", record.info(), &[]);
            html! { html;
                "<pre class=\"outcome\" tabindex=\"0\">\n" (text.trim_start_matches('\n')) "</pre><p class=\"note\">" (what)
                ". <a href=\"" (to) "\" download=\"outcome.bin\">Save the stored bytes</a></p>"
            }
        }
    }
    html.markup("</section>");
}

fn line((name, value): &(&'static str, String), html: &mut Html) {
    html! { html; "<div><dt>" (name) "</dt><dd>" (value) "</dd></div>" }
}

fn context(facts: &[(&'static str, String)], html: &mut Html) {
    let mut entries = facts.iter().filter(|(name, _)| *name == "context").peekable();
    if entries.peek().is_none() {
        return;
    }
    html.markup("<section aria-labelledby=\"context\"><h2 id=\"context\">Context</h2><ul class=\"plain\">");
    for (_, value) in entries {
        html! { html; "<li>" (value) "</li>" }
    }
    html.markup("</ul></section>");
}

fn effect(info: &RecordInfo, label: &str, html: &mut Html) {
    html! { html;
        "<section aria-labelledby=\"effects\"><h2 id=\"effects\">Effect ids</h2><p class=\"note\">The id that the operation passes to \
         another system. Ask that system by it whether the effect has happened.</p>\
         <form class=\"row\" method=\"get\" action=\"record#effects\"><input type=\"hidden\" name=\"manager\" value=\"" (info.manager())
        "\"><input type=\"hidden\" name=\"key\" value=\"" (info.key()) "\"><label><span>Label of the effect</span>\
         <input name=\"effect\" value=\"" (label) "\" placeholder=\"charge\" autocomplete=\"off\" spellcheck=\"false\"></label>\
         <button>Show its id</button></form>"
    }
    if !label.is_empty() {
        html! { html; "<p><code class=\"id\">" (info.effect_id(label)) "</code></p>" }
    }
    html.markup("</section>");
}
