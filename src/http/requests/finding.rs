//! Finds requests by a filter.

use super::Requests;
use crate::api::records::{RecordFilter, Records};
use crate::http::response::Response;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::outcome::Record;

impl Requests {
    /// Lists the requests of this name and scope that match. A key prefix in the filter is relative to the scope.
    ///
    /// # Errors
    ///
    /// `InvalidOptions` if the filter is for another manager.
    ///
    /// ```
    /// # use oncekey::{admin::RecordFilter, http::NewRequest};
    /// # let engine = oncekey::Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// requests.create(NewRequest::new("POST", "/orders"))?;
    /// assert_eq!(requests.find(RecordFilter::new().context("path", "/orders"))?.count(), 1);
    /// assert_eq!(requests.find(RecordFilter::new().context("path", "/carts"))?.count(), 0);
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn find(&self, filter: RecordFilter) -> Result<Records> {
        self.manager.engine().records(filter.limited_to(self.manager.name(), &self.manager.scope)?)
    }

    /// Returns the only request that matches, with its response. Returns `None` if no request matches.
    ///
    /// # Errors
    ///
    /// `Ambiguous` if several requests match; otherwise the errors of [`find`](Requests::find).
    ///
    /// ```
    /// # use oncekey::{ErrorKind, admin::RecordFilter, http::NewRequest};
    /// # let engine = oncekey::Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// assert!(requests.retrieve_one(RecordFilter::new())?.is_none());
    /// requests.create(NewRequest::new("POST", "/orders"))?;
    /// assert!(requests.retrieve_one(RecordFilter::new())?.is_some());
    /// requests.create(NewRequest::new("POST", "/orders"))?;
    /// assert_eq!(
    ///     requests.retrieve_one(RecordFilter::new()).unwrap_err().kind(),
    ///     ErrorKind::Ambiguous
    /// );
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn retrieve_one(&self, filter: RecordFilter) -> Result<Option<Record<Response, Response>>> {
        self.retrieve_where(filter, |_record| true)
    }

    /// Returns the only request that matches the filter and the closure. The closure sees every field, including the
    /// response. Reads each request that matches the filter.
    ///
    /// # Errors
    ///
    /// The errors of [`retrieve_one`](Requests::retrieve_one).
    ///
    /// ```
    /// # use http::StatusCode;
    /// # use oncekey::{admin::RecordFilter, http::{NewRequest, RequestPatch, Response}};
    /// # let engine = oncekey::Engine::temporary()?;
    /// let requests = engine.requests("checkout")?;
    /// for status in [StatusCode::CREATED, StatusCode::PAYMENT_REQUIRED] {
    ///     let created = requests.create(NewRequest::new("POST", "/orders"))?;
    ///     requests.update(created.key(), RequestPatch::new().response(Response::new(status)))?;
    /// }
    /// let is_declined = |response: &Response| response.status() == StatusCode::PAYMENT_REQUIRED;
    /// let declined = requests.retrieve_where(RecordFilter::new(), |record| {
    ///     matches!(record.outcome(), Some(Ok(response)) if is_declined(response))
    /// })?;
    /// assert!(declined.is_some());
    /// # Ok::<(), oncekey::Error>(())
    /// ```
    pub fn retrieve_where(
        &self,
        filter: RecordFilter,
        matches: impl Fn(&Record<Response, Response>) -> bool,
    ) -> Result<Option<Record<Response, Response>>> {
        let filter = filter.limited_to(self.manager.name(), &self.manager.scope)?;
        let mut only = None;
        for info in self.manager.engine().records(filter.clone())? {
            let info = info?;
            let Some(key) = info.key().within(&self.manager.scope) else { continue };
            // The record may have changed since it was listed, so apply the filter again.
            let record = self.manager.get(key)?.filter(|record| filter.matches(record.info()));
            if let Some(record) = record.filter(&matches) {
                choose(&mut only, record)?;
            }
        }
        Ok(only)
    }
}

/// Stores `record` in `only`, or returns `Ambiguous` if a record is there already.
pub(super) fn choose(only: &mut Option<Record<Response, Response>>, record: Record<Response, Response>) -> Result<()> {
    if let Some(first) = only {
        let (first, second) = (first.info(), record.info());
        let message =
            format!("more than one request of {} matches: {} and {}", first.manager(), first.key(), second.key());
        return Err(Error::new(ErrorKind::Ambiguous, message));
    }
    *only = Some(record);
    Ok(())
}
