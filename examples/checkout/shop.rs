//! A checkout: the part that an application has to write.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use oncekey::{
    CallOptions, Claim, Engine, Executed, Fingerprint, Manager, ManagerOptions, OnInterrupted,
    stage::{DriveError, Next, STARTED, Stages},
    table::TransactionTable,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::point::{Point, Watch};
use crate::provider;

/// The manager of checkouts. The id of a cart is the idempotency key of its checkout.
pub(crate) const CARTS: &str = "carts";
/// Table: item to the number of pieces that can still be reserved.
pub(crate) const STOCK: &str = "stock";
/// Table: item to the number of pieces ever delivered, for the checks.
pub(crate) const DELIVERED: &str = "delivered";
/// Table: cart to the item that is reserved for it until the order.
pub(crate) const RESERVATIONS: &str = "reservations";
/// Table: order number to [`OrderRow`].
pub(crate) const ORDERS: &str = "orders";
const COUNTERS: &str = "counters";

/// The recovery points, named after the last completed stage.
pub(crate) const RESERVED: &str = "reserved";
pub(crate) const CHARGED: &str = "charged";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cart {
    pub(crate) id: String,
    pub(crate) item: String,
    pub(crate) cents: u64,
}

/// The success of a checkout. Every retry gets it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) number: u64,
    pub(crate) charge: String,
}

/// The failure of a checkout. Every retry gets it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NotOrdered {
    SoldOut,
}

impl fmt::Display for NotOrdered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SoldOut => f.write_str("sold out"),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OrderRow {
    pub(crate) cart: String,
    pub(crate) item: String,
    pub(crate) charge: String,
}

/// The error of a stage. It is not stored: the checkout stays at its recovery point, and the next try continues there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Engine(#[from] oncekey::Error),
    #[error("a row cannot be read or written: {0}")]
    Row(#[from] serde_json::Error),
    /// The provider may have charged. Ask again with the same effect id.
    #[error("the provider did not answer: {0}")]
    Provider(#[from] io::Error),
    #[error("the provider refused with status {0}")]
    Refused(u16),
}

pub(crate) type Carts = Manager<Order, NotOrdered>;
type Checkout = Claim<Order, NotOrdered>;

/// A checkout is safe to repeat. Its stages in the store are atomic, and the provider recognises a repeated charge by
/// the effect id. So an interrupted checkout is resumed, and no operator is needed.
pub(crate) fn carts(engine: &Engine) -> oncekey::Result<Carts> {
    engine.manager_with(CARTS, ManagerOptions::new().on_interrupted(OnInterrupted::Resume))
}

pub(crate) struct Shop {
    carts: Carts,
    provider: SocketAddr,
    watch: Watch,
}

impl Shop {
    pub(crate) fn new(engine: &Engine, provider: SocketAddr, watch: Watch) -> oncekey::Result<Self> {
        Ok(Self { carts: carts(engine)?, provider, watch })
    }

    /// Runs a checkout from its recovery point to its end. After a crash, call it again until it returns an answer. Any
    /// process may call it.
    pub(crate) fn check_out(&self, cart: &Cart) -> Result<Executed<Order>, DriveError<Order, NotOrdered, Fault>> {
        let stages = Stages::new()
            .stage(STARTED, |claim| self.reserve(claim, cart))
            .stage(RESERVED, |claim| self.charge(claim, cart))
            .stage(CHARGED, |claim| self.order(claim, cart));
        let same_cart = Fingerprint::of(cart)?;
        self.carts.drive(&cart.id, CallOptions::new().fingerprint(same_cart), &stages)
    }

    /// Takes one piece from the stock and advances the checkout, in one commit. If the stock is empty, ends the
    /// checkout.
    fn reserve(&self, claim: &mut Checkout, cart: &Cart) -> Result<(), Fault> {
        (self.watch)(Point::BeforeReserve);
        claim.work_stage(|tx| {
            let stock = tx.table(STOCK)?;
            let left: u64 = read(stock, &cart.item)?.unwrap_or(0);
            let next = if left == 0 {
                Next::Fail(NotOrdered::SoldOut)
            } else {
                write(stock, &cart.item, &(left - 1))?;
                write(tx.table(RESERVATIONS)?, &cart.id, &cart.item)?;
                Next::advance(RESERVED)
            };
            (self.watch)(Point::InsideReserve);
            Ok::<_, Fault>(next)
        })?;
        (self.watch)(Point::AfterReserve);
        Ok(())
    }

    /// Charges the card, and then stores the charge. The effect is outside the closure, because a closure may run
    /// several times and may be rolled back.
    fn charge(&self, claim: &mut Checkout, cart: &Cart) -> Result<(), Fault> {
        (self.watch)(Point::BeforeCharge);
        let charge = provider::charge(self.provider, &claim.effect_id("charge"), cart, &self.watch)?;
        (self.watch)(Point::Charged);
        claim.work_stage(|_tx| {
            (self.watch)(Point::InsideCharge);
            Ok::<_, Fault>(Next::advance_with(CHARGED, charge.as_str()))
        })?;
        (self.watch)(Point::AfterCharge);
        Ok(())
    }

    /// Turns the reservation into an order with a number, and ends the checkout, in one commit.
    fn order(&self, claim: &mut Checkout, cart: &Cart) -> Result<(), Fault> {
        (self.watch)(Point::BeforeOrder);
        let charge = String::from_utf8_lossy(claim.checkpoint().unwrap_or_default()).into_owned();
        claim.work_stage(|tx| {
            let counters = tx.table(COUNTERS)?;
            let number = read(counters, ORDERS)?.unwrap_or(0) + 1;
            write(counters, ORDERS, &number)?;
            let row = OrderRow { cart: cart.id.clone(), item: cart.item.clone(), charge: charge.clone() };
            write(tx.table(ORDERS)?, &number.to_string(), &row)?;
            tx.table(RESERVATIONS)?.remove(&cart.id)?;
            (self.watch)(Point::InsideOrder);
            Ok::<_, Fault>(Next::Succeed(Order { number, charge: charge.clone() }))
        })?;
        (self.watch)(Point::AfterOrder);
        Ok(())
    }
}

/// Adds items to the stock: several rows in one commit.
pub(crate) fn deliver(engine: &Engine, items: &[(String, u64)]) -> Result<(), Fault> {
    engine.atomic_phase(|tx| {
        for (item, count) in items {
            for table in [tx.table(STOCK)?, tx.table(DELIVERED)?] {
                write(table, item, &(read(table, item)?.unwrap_or(0) + count))?;
            }
        }
        Ok(())
    })
}

fn read<R: DeserializeOwned>(table: TransactionTable<'_>, key: &str) -> Result<Option<R>, Fault> {
    Ok(table.get(key)?.map(|row| serde_json::from_slice(&row)).transpose()?)
}

fn write<R: Serialize>(table: TransactionTable<'_>, key: &str, row: &R) -> Result<(), Fault> {
    Ok(table.insert(key, serde_json::to_vec(row)?)?)
}
