//! The forms that change a record, each after a confirmation.

use super::Site;
use super::action::Act;
use super::html::{Html, html};
use super::page::{self, Fault, Frame, Part};
use super::record;
use super::reply::{Reply, Status};
use super::request::Fields;
use crate::cli::out::{Done, Stop};
use crate::cli::outcome::{self, Given};
use crate::cli::resolve::{self, Form, Plan};
use crate::cli::store::Store;
use crate::{RecordInfo, Status as State};

/// The fields of a form with an outcome.
const OUTCOME: [&str; 6] = ["how", "form", "content", "code", "headers", "unchecked"];

/// The ways in which an operation has ended, as `how` names them.
const HOW: [(&str, &str); 3] =
    [("succeed", "It succeeded"), ("fail", "It failed"), ("response", "It succeeded with an HTTP response")];

/// Returns the page that asks for a confirmation, or for an outcome.
pub(super) fn ask(site: &Site<'_>, fields: &Fields) -> Result<Reply, Fault> {
    let act = chosen(site, fields)?;
    let typed = record::typed_key(fields);
    let (is_live, info) = site.look(|store| Ok((store.is_live(), typed.record(store)?.info().clone())))?;
    if !act.is_possible(&info) {
        return Err(Fault::from(Stop::Nothing(format!("{info}: this cannot be done in that state"))));
    }
    let mut body = Html::default();
    begin(act, &info, &mut body);
    if act == Act::Resolve {
        outcome_fields(fields, &mut body);
        end("Check it", false, &info, &mut body);
    } else {
        confirmation(act.name(), &info, &mut body);
    }
    Ok(show(site, Status::OK, is_live, &body))
}

/// Makes the change that a form asks for. Asks for a confirmation first if the form has none.
pub(super) fn act(site: &Site<'_>, form: &Fields) -> Result<Reply, Fault> {
    let act = chosen(site, form)?;
    if form.get("confirmed") != "yes" {
        return if act == Act::Resolve { check(site, form) } else { ask(site, form) };
    }
    let (typed, seen) = (record::typed_key(form), seen(form)?);
    let info = site.change(|store| {
        let info = typed.record_at(store, Some(seen))?.info().clone();
        change(site, store, act, form, &info)?;
        Ok(info)
    })?;
    Ok(Reply::see_other(&page::address("record", &info, &[("done", act.word())])))
}

fn change(site: &Site<'_>, store: &dyn Store, act: Act, form: &Fields, info: &RecordInfo) -> Done {
    let plan = match act {
        Act::Release => Plan::Retry,
        Act::Undo => Plan::Undo,
        Act::Resolve => Plan::Outcome(given(form)?),
        Act::Revoke => return Ok(store.revoke_if_unchanged(info)?),
    };
    let outcome = resolve::prepare(store, site.describers, &plan, info, is_unchecked(form))?;
    resolve::apply(store, &plan, info, outcome)
}

/// Checks an outcome, and asks for a confirmation. Asks for the outcome again if it does not fit.
fn check(site: &Site<'_>, form: &Fields) -> Result<Reply, Fault> {
    let (typed, seen) = (record::typed_key(form), seen(form)?);
    let (is_live, info, checked) = site.look(|store| {
        let info = typed.record_at(store, Some(seen))?.info().clone();
        let prepare =
            |given| resolve::prepare(store, site.describers, &Plan::Outcome(given), &info, is_unchecked(form));
        let checked = match given(form).and_then(prepare) {
            Err(Stop::Usage(message)) => Err(message),
            Err(other) => return Err(other),
            Ok(bytes) => Ok(bytes.unwrap_or_default()),
        };
        Ok((store.is_live(), info, checked))
    })?;
    let mut body = Html::default();
    begin(Act::Resolve, &info, &mut body);
    let bytes = match checked {
        Ok(bytes) => bytes,
        Err(message) => {
            html! { body; "<p class=\"flash bad\" role=\"alert\">" (message) "</p>" }
            outcome_fields(form, &mut body);
            end("Check it", false, &info, &mut body);
            return Ok(show(site, Status::BAD_REQUEST, is_live, &body));
        }
    };
    for name in OUTCOME {
        html! { body; "<input type=\"hidden\" name=\"" (name) "\" value=\"" (form.get(name)) "\">" }
    }
    let (kind, given) = if is_failure(form) { (State::Failed, Err(&bytes)) } else { (State::Succeeded, Ok(&bytes)) };
    let described = site.describers.describe_outcome(&info, given).transpose().map_err(Stop::Engine)?;
    let text = described.unwrap_or_else(|| outcome::text(&bytes));
    body.markup("<p>Every request with this key will get:</p><p class=\"is\">");
    page::mark(kind, &mut body);
    html! { body; "</p><pre class=\"outcome\" tabindex=\"0\">\n" (text.trim_start_matches('\n')) "</pre>" }
    confirmation("Store this outcome", &info, &mut body);
    Ok(show(site, Status::OK, is_live, &body))
}

/// Returns the revision that the form was made for.
fn seen(form: &Fields) -> Result<u64, Fault> {
    let unread = |_| Fault::from(Stop::Usage("the form names no revision of the record".to_owned()));
    form.get("revision").parse().map_err(unread)
}

/// Returns the act that the fields name.
fn chosen(site: &Site<'_>, fields: &Fields) -> Result<Act, Fault> {
    if site.read_only {
        let message = "This page was started with --read-only. Nothing was changed.";
        return Err(Fault::new(Status::FORBIDDEN, "Read only", message));
    }
    let unknown = || Fault::from(Stop::Usage("the form names no known action".to_owned()));
    Act::named(fields.get("do")).ok_or_else(unknown)
}

fn is_unchecked(form: &Fields) -> bool {
    form.get("unchecked") == "yes"
}

fn is_failure(form: &Fields) -> bool {
    form.get("how") == "fail"
}

/// Reads the outcome in a form.
fn given(form: &Fields) -> Done<Given> {
    // Browsers send each end of a line as CR LF.
    let lines = |name: &str| form.get(name).replace("\r\n", "\n");
    let content = lines("content").into_bytes();
    let content = match (form.get("how"), form.get("form")) {
        ("response", _) => {
            let headers: Vec<String> =
                lines("headers").lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
            resolve::response(form.get("code"), &headers, content)?
        }
        (_, "json") => Form::Json.content(content, &"the outcome")?,
        _ => Form::Text.content(content, &"the outcome")?,
    };
    Ok(Given { is_failure: is_failure(form), content })
}

/// Appends the head of a page that asks, and the beginning of its form.
fn begin(act: Act, info: &RecordInfo, html: &mut Html) {
    record::head(info, html);
    html! { html;
        "<form class=\"ask\" method=\"post\" action=\"act\"><h2>" (act.name()) "</h2><p>" (act.advice())
        "</p><input type=\"hidden\" name=\"do\" value=\"" (act.word()) "\"><input type=\"hidden\" name=\"manager\" value=\""
        (info.manager()) "\"><input type=\"hidden\" name=\"key\" value=\"" (info.key())
        "\"><input type=\"hidden\" name=\"revision\" value=\"" (info.revision()) "\">"
    }
}

/// Appends the button that confirms a change, and the end of the form.
fn confirmation(name: &'static str, info: &RecordInfo, html: &mut Html) {
    html.markup("<input type=\"hidden\" name=\"confirmed\" value=\"yes\">");
    end(name, true, info, html);
}

/// Appends the buttons, and the end of the form.
fn end(name: &'static str, changes: bool, info: &RecordInfo, html: &mut Html) {
    let class = if changes { "danger" } else { "primary" };
    html! { html;
        "<div class=\"actions\"><button class=\"" (class) "\">" (name) "</button><a class=\"button quiet\" href=\""
        (page::address("record", info, &[])) "\">Cancel</a></div></form>"
    }
}

/// Appends a choice of one of several.
fn choice(form: &Fields, name: &'static str, of: &[(&'static str, &'static str)], html: &mut Html) {
    let chosen = of.iter().position(|(word, _)| form.get(name) == *word).unwrap_or_default();
    for (at, (word, label)) in of.iter().enumerate() {
        let checked = if at == chosen { " checked" } else { "" };
        html! { html;
            "<label class=\"check\"><input type=\"radio\" name=\"" (name) "\" value=\"" (word) "\"" (checked) "><span>" (label)
            "</span></label>"
        }
    }
    html.markup("</fieldset>");
}

fn outcome_fields(form: &Fields, html: &mut Html) {
    html.markup("<fieldset class=\"choice\"><legend>How did it end?</legend>");
    // Without the feature, this program does not know responses.
    let (plain, all) = (HOW.get(..2).unwrap_or_default(), HOW.as_slice());
    choice(form, "how", if cfg!(feature = "http") { all } else { plain }, html);
    html.markup("<fieldset class=\"choice\" data-for=\"succeed fail\"><legend>The outcome below is</legend>");
    choice(form, "form", &[("text", "text"), ("json", "JSON")], html);
    html! { html;
        "<div class=\"row\" data-for=\"response\"><label><span>Status of the response</span>\
         <input name=\"code\" inputmode=\"numeric\" placeholder=\"201\" autocomplete=\"off\" value=\"" (form.get("code"))
        "\"></label><label class=\"grow\"><span>Its headers, one on a line</span>\
         <textarea name=\"headers\" rows=\"2\" placeholder=\"Content-Type: application/json\" spellcheck=\"false\">\n"
        (form.get("headers")) "</textarea></label></div><label class=\"block\"><span>Outcome, or body of the response</span>\
         <textarea name=\"content\" rows=\"8\" spellcheck=\"false\">\n" (form.get("content")) "</textarea></label>\
         <label class=\"check\"><input type=\"checkbox\" name=\"unchecked\" value=\"yes\""
        (if is_unchecked(form) { " checked" } else { "" })
        "><span>Store it although nothing shows that the service can read it</span></label>"
    }
}

fn show(site: &Site<'_>, status: Status, is_live: bool, body: &Html) -> Reply {
    let frame = Frame { title: "Confirm", part: Some(Part::Records), refreshes: false, is_live: Some(is_live) };
    Reply::html(status, frame.page(Some(site), body))
}
