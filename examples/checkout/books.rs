//! Reads everything in the store, and checks that records and tables agree.

use std::collections::BTreeMap;

use oncekey::{
    Engine, RecordInfo, Status,
    admin::RecordFilter,
    stage::{FINISHED, STARTED},
};
use serde::de::DeserializeOwned;

use crate::shop::{CARTS, CHARGED, DELIVERED, Fault, ORDERS, OrderRow, RESERVATIONS, RESERVED, STOCK};

/// The contents of the store, each map by name.
#[derive(Debug)]
pub(crate) struct Books {
    delivered: BTreeMap<String, u64>,
    pub(crate) stock: BTreeMap<String, u64>,
    pub(crate) reservations: BTreeMap<String, String>,
    pub(crate) orders: BTreeMap<String, OrderRow>,
    pub(crate) carts: BTreeMap<String, RecordInfo>,
}

impl Books {
    pub(crate) fn read(engine: &Engine) -> Result<Self, Fault> {
        let mut carts = BTreeMap::new();
        for record in engine.records(RecordFilter::new().manager(CARTS))? {
            let record = record?;
            carts.insert(record.key().to_string(), record);
        }
        Ok(Self {
            delivered: table(engine, DELIVERED)?,
            stock: table(engine, STOCK)?,
            reservations: table(engine, RESERVATIONS)?,
            orders: table(engine, ORDERS)?,
            carts,
        })
    }

    /// Returns the contradictions between records and tables. There are none if both change together. Called after
    /// every kill.
    pub(crate) fn disagreements(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (item, delivered) in &self.delivered {
            let (left, reserved, ordered) = (self.stock.get(item), self.reserved(item), self.ordered(item));
            if left.map(|left| left + reserved + ordered) != Some(*delivered) {
                found.push(format!(
                    "{item}: {delivered} delivered, {left:?} left, {reserved} reserved, {ordered} ordered"
                ));
            }
        }
        let mut orders: BTreeMap<&str, usize> = BTreeMap::new();
        for row in self.orders.values() {
            *orders.entry(&row.cart).or_default() += 1;
        }
        for (cart, record) in &self.carts {
            let is = (self.reservations.contains_key(cart), orders.remove(cart.as_str()).unwrap_or(0));
            let point = record.recovery_point();
            let must_be = match (record.status(), point) {
                (Status::Succeeded, FINISHED) => (false, 1),
                (Status::Failed, FINISHED) | (Status::Interrupted | Status::Released, STARTED) => (false, 0),
                (Status::Interrupted | Status::Released, RESERVED | CHARGED) => (true, 0),
                (status, _) => {
                    found.push(format!("{cart}: is {status:?} at {point}"));
                    continue;
                }
            };
            if is != must_be {
                found.push(format!("{cart}: at {point}, reserved and ordered are {is:?}, must be {must_be:?}"));
            }
        }
        found.extend(orders.keys().map(|cart| format!("{cart}: has an order and no record")));
        let unknown = self.reservations.keys().filter(|cart| !self.carts.contains_key(*cart));
        found.extend(unknown.map(|cart| format!("{cart}: has a reservation and no record")));
        found
    }

    fn reserved(&self, item: &str) -> u64 {
        self.reservations.values().filter(|reserved| *reserved == item).count() as u64
    }

    pub(crate) fn ordered(&self, item: &str) -> u64 {
        self.orders.values().filter(|row| row.item == item).count() as u64
    }
}

fn table<R: DeserializeOwned>(engine: &Engine, name: &str) -> Result<BTreeMap<String, R>, Fault> {
    let mut rows = BTreeMap::new();
    for row in engine.table(name)?.iter()? {
        let (key, row) = row?;
        rows.insert(String::from_utf8_lossy(&key).into_owned(), serde_json::from_slice(&row)?);
    }
    Ok(rows)
}
