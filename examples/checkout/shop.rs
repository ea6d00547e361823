//! A checkout: what an application has to write.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use oncekey::{
    CallOptions, Claim, DriveError, Engine, Executed, Fingerprint, Manager, ManagerOptions, Next, OnInterrupted,
    STARTED, Stages, table::TransactionTable,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::point::{Point, Watch};
use crate::provider;

/// What carts are kept under: the cart's id is the idempotency key of its checkout.
pub(crate) const CARTS: &str = "carts";
/// Item to how many may still be reserved.
pub(crate) const STOCK: &str = "stock";
/// Item to how many there ever were, for the books.
pub(crate) const DELIVERED: &str = "delivered";
/// Cart to the item that is kept for it until it is ordered.
pub(crate) const RESERVATIONS: &str = "reservations";
/// Order number to [`OrderRow`].
pub(crate) const ORDERS: &str = "orders";
const COUNTERS: &str = "counters";

/// Recovery points: what is done when a checkout is found there.
pub(crate) const RESERVED: &str = "reserved";
pub(crate) const CHARGED: &str = "charged";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Cart {
    pub(crate) id: String,
    pub(crate) item: String,
    pub(crate) cents: u64,
}

/// What every try of a cart's checkout is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) number: u64,
    pub(crate) charge: String,
}

/// Likewise.
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

/// Why a stage came to nothing. Nothing of it is stored: the checkout stays where it was, and the next try goes on there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Engine(#[from] oncekey::Error),
    #[error("a row cannot be read or written: {0}")]
    Row(#[from] serde_json::Error),
    /// It may have charged: with the same effect id it may be asked again.
    #[error("the provider did not answer: {0}")]
    Provider(#[from] io::Error),
    #[error("the provider refused with status {0}")]
    Refused(u16),
}

pub(crate) type Carts = Manager<Order, NotOrdered>;
type Checkout = Claim<Order, NotOrdered>;

/// To run a checkout again is safe, whatever became of it: its stages in the store happened or did not, and the provider is
/// told by the effect id that it is the same charge. So an interrupted one is resumed, and nobody has to look at it.
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

    /// From wherever it is to its end. To be called again, by anybody and after any crash, until it has an answer.
    pub(crate) fn check_out(&self, cart: &Cart) -> Result<Executed<Order>, DriveError<Order, NotOrdered, Fault>> {
        let stages = Stages::new()
            .stage(STARTED, |claim| self.reserve(claim, cart))
            .stage(RESERVED, |claim| self.charge(claim, cart))
            .stage(CHARGED, |claim| self.order(claim, cart));
        let same_cart = Fingerprint::of(cart)?;
        self.carts.drive(&cart.id, CallOptions::new().fingerprint(same_cart), &stages)
    }

    /// One piece less in stock, and the checkout's record says so: in one commit. Or it ends here.
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

    /// The effect is outside of the stage: a closure may run several times, and may be rolled back.
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

    /// The reservation becomes an order with a number, and the checkout has its answer: in one commit.
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

/// Puts items into the stock: several rows, all or none.
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
