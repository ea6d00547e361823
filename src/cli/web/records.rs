//! The list of records: filters, order and pages.

use std::time::SystemTime;

use super::html::{Html, html};
use super::page::{self, Fault, Frame, Part, STATES, count};
use super::reply::{Reply, Status};
use super::request::Fields;
use super::{Deadline, Site, TO_LOOK};
use crate::cli::filter::Query;
use crate::cli::list::{self, Listed, Row};
use crate::cli::out::{Done, Stop};
use crate::cli::store::{Listing, Store};
use crate::{
    RecordInfo,
    clock::{Clock as _, SystemClock},
};

/// The number of records of a page.
const PAGE: usize = 50;
/// The number of the last page. Later records can be found by a filter.
const PAGES: usize = 1_000;

/// The filters that are seldom used: names in addresses, labels, and examples.
const MORE: [(&str, &str, &str); 6] = [
    ("scope", "Scope", "user-7"),
    ("key-prefix", "Key begins with", "order-"),
    ("older-than", "Not changed for", "15m, 2h, 7days"),
    ("newer-than", "Changed within", "15m, 2h, 7days"),
    ("recovery-point", "Recovery point", "charged"),
    ("context", "Context", "name=value"),
];

const ORDERS: [(&str, &str); 7] = [
    ("", "Manager and key"),
    ("key", "Key"),
    ("changed", "Last change"),
    ("created", "Creation"),
    ("expires", "Expiry"),
    ("tries", "Tries"),
    ("outcome", "Size of the outcome"),
];

pub(super) fn page(site: &Site<'_>, query: &Fields) -> Result<Reply, Fault> {
    let asked = match Query::parse(query.iter()) {
        Ok(asked) => asked,
        Err(stop) => return Ok(show(site, query, None, Status::BAD_REQUEST, &complaint(Fault::from(stop)))),
    };
    let filter = match asked.filter.records() {
        Ok(filter) => filter,
        Err(stop) => return Ok(show(site, query, None, Status::BAD_REQUEST, &complaint(Fault::from(stop)))),
    };
    let number = query.get("page").parse().unwrap_or(1).clamp(1, PAGES);
    let start = PAGE * (number - 1);
    // One more, to know whether there is a next page.
    let listed = Listed { order: asked.order, limit: Some(start + PAGE + 1), only_count: false };
    let read = |store: &dyn Store| -> Done<(bool, Vec<RecordInfo>)> {
        let until = Deadline::after(TO_LOOK);
        let mut is_late = false;
        let in_time = store.records(filter)?.take_while(|_| {
            is_late = until.left().is_none();
            !is_late
        });
        let found: Listing<'_, RecordInfo> = Box::new(in_time);
        let infos = list::ordered(found, &listed)?.skip(start).collect::<crate::Result<_>>()?;
        if is_late {
            let seconds = TO_LOOK.as_secs();
            return Err(Stop::Usage(format!(
                "reading the records took longer than {seconds} s: select one manager, or a scope"
            )));
        }
        Ok((store.is_live(), infos))
    };
    let (is_live, mut infos) = site.look(read)?;
    let is_last = infos.len() <= PAGE || number == PAGES;
    infos.truncate(PAGE);
    let mut html = Html::default();
    if infos.is_empty() {
        html.markup("<p class=\"empty\">No record matches.</p>");
    } else {
        table(&infos, SystemClock.wall(), &mut html);
    }
    pages(query, number, infos.len(), is_last, &mut html);
    Ok(show(site, query, Some(is_live), Status::OK, &html))
}

fn complaint(fault: Fault) -> Html {
    let mut html = Html::default();
    html! { html; "<p class=\"flash bad\" role=\"alert\">" (in_words(fault.message)) "</p>" }
    html
}

/// Replaces the options that a message names by the names of their fields.
fn in_words(message: String) -> String {
    let in_words = |message: String, (name, label, _): (&str, &str, &str)| {
        let option = format!("'--{name} ");
        let Some((before, (_, after))) =
            message.split_once(&option).and_then(|(before, rest)| Some((before, rest.split_once('\'')?)))
        else {
            return message;
        };
        format!("{before}\"{label}\"{after}")
    };
    MORE.into_iter().fold(message, in_words)
}

fn show(site: &Site<'_>, query: &Fields, is_live: Option<bool>, status: Status, found: &Html) -> Reply {
    let mut body = Html::default();
    body.markup("<div class=\"title\"><h1>Records</h1></div>");
    form(query, &mut body);
    body.append(found);
    let frame = Frame { title: "Records", part: Some(Part::Records), refreshes: false, is_live };
    Reply::html(status, frame.page(Some(site), &body))
}

fn form(query: &Fields, html: &mut Html) {
    html! { html;
        "<form class=\"filters\" method=\"get\" action=\"records\" role=\"search\"><div class=\"row\"><label class=\"grow\">\
         <span>Key contains</span><input type=\"search\" name=\"contains\" value=\"" (query.get("contains"))
        "\" autocomplete=\"off\" spellcheck=\"false\" data-search></label><label><span>Manager</span>\
         <input name=\"manager\" value=\"" (query.get("manager")) "\" autocomplete=\"off\" spellcheck=\"false\"></label>\
         <button class=\"primary\">Show</button><a class=\"button quiet\" href=\"records\">Clear</a></div>\
         <fieldset class=\"states\"><legend>States</legend>"
    }
    for state in STATES {
        let (word, name) = page::state(state);
        let checked = if query.contains("status", word) { " checked" } else { "" };
        html! { html;
            "<label class=\"check\"><input type=\"checkbox\" name=\"status\" value=\"" (word) "\"" (checked)
            "><span class=\"state " (word) "\">" (name) "</span></label>"
        }
    }
    let is_used = |name: &str| !query.get(name).is_empty();
    let is_open = MORE.iter().any(|(name, ..)| is_used(name)) || is_used("sort") || is_used("reverse");
    html! { html;
        "</fieldset><details" (if is_open { " open" } else { "" }) "><summary>More filters, and the order</summary><div class=\"row\">"
    }
    for (name, label, example) in MORE {
        html! { html;
            "<label><span>" (label) "</span><input name=\"" (name) "\" value=\"" (query.get(name)) "\" placeholder=\"" (example)
            "\" autocomplete=\"off\" spellcheck=\"false\"></label>"
        }
    }
    html.markup("<label><span>Order by</span><select name=\"sort\">");
    for (word, name) in ORDERS {
        let selected = if query.get("sort") == word { " selected" } else { "" };
        html! { html; "<option value=\"" (word) "\"" (selected) ">" (name) "</option>" }
    }
    let checked = if is_used("reverse") { " checked" } else { "" };
    html! { html;
        "</select></label><label class=\"check\"><input type=\"checkbox\" name=\"reverse\" value=\"on\"" (checked)
        "><span>Last one first</span></label></div></details></form>"
    }
}

fn table(infos: &[RecordInfo], now: SystemTime, html: &mut Html) {
    html.markup("<div class=\"wide\"><table class=\"records\"><thead><tr>");
    for name in ["Key", "Status", "Manager", "Tries", "Changed", "Expires", "Outcome"] {
        html! { html; "<th scope=\"col\">" (name) "</th>" }
    }
    html.markup("</tr></thead><tbody>");
    for info in infos {
        let Row { tries, changed, expires, outcome } = Row::new(info, now);
        html! { html;
            "<tr><th scope=\"row\"><a class=\"key\" href=\"" (page::address("record", info, &[])) "\"><bdi>" (info.key())
            "</bdi></a></th><td data-name=\"Status\">"
        }
        page::mark(info.status(), html);
        html! { html;
            "</td><td data-name=\"Manager\">" (info.manager()) "</td><td class=\"number\" data-name=\"Tries\">" (tries)
            "</td><td data-name=\"Changed\">" (changed) "</td><td data-name=\"Expires\">" (expires)
            "</td><td class=\"number\" data-name=\"Outcome\">" (outcome) "</td></tr>"
        }
    }
    html.markup("</tbody></table></div>");
}

fn pages(query: &Fields, number: usize, shown: usize, is_last: bool, html: &mut Html) {
    if shown == 0 && number == 1 {
        return;
    }
    let to = |number: usize| {
        let number = number.to_string();
        let kept = query.iter().filter(|(name, value)| *name != "page" && !value.is_empty());
        page::query("records", kept.chain([("page", number.as_str())]))
    };
    html.markup("<nav class=\"pages\" aria-label=\"Pages of the list\">");
    if number > 1 {
        html! { html; "<a class=\"button\" rel=\"prev\" href=\"" (to(number - 1)) "\">Previous</a>" }
    }
    if shown > 0 {
        let first = PAGE * (number - 1) + 1;
        let (first, last) = (count(first as u64), count((first + shown - 1) as u64));
        html! { html; "<span>Records " (first) " to " (last) "</span>" }
    }
    if !is_last {
        html! { html; "<a class=\"button\" rel=\"next\" href=\"" (to(number + 1)) "\">Next</a>" }
    } else if number == PAGES {
        html.markup("<span>Find later records by a filter or another order.</span>");
    }
    html.markup("</nav>");
}
