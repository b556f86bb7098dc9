//! The compiled watches that a backend keeps until the table, the type of a column, or a schema changes. Partitions
//! with the same columns share one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use pgrx::prelude::*;

use crate::capture::watch::{Source, Watch};

/// The most different watches that a backend keeps. Each takes about 25 kB, so they take about 12 MB. When there is one
/// more, all are dropped.
const MAX_WATCHES: usize = 500;

/// The most triggers whose watches a backend knows, at 100 bytes each. When there is one more, all are dropped.
const MAX_TRIGGERS: usize = 20_000;

/// A trigger whose watch is known.
struct Known {
    /// The table that has the trigger.
    relation: pg_sys::Oid,
    watch: Rc<Watch>,
}

#[derive(Default)]
struct Cache {
    /// By the trigger's OID.
    known: BTreeMap<u32, Known>,
    /// The different watches among them.
    watches: Vec<Rc<Watch>>,
}

thread_local! {
    static CACHE: RefCell<Cache> = const { RefCell::new(Cache { known: BTreeMap::new(), watches: Vec::new() }) };
    /// Counts invalidations, so that a watch is not kept if one arrived while it was compiled.
    static INVALIDATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Registers the callbacks; called from `_PG_init`, inherited by every backend.
pub fn init() {
    // SAFETY: the functions have the right signatures and live as long as the process.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::from(0));
        pg_sys::CacheRegisterSyscacheCallback(
            pg_sys::SysCacheIdentifier::NAMESPACEOID as i32,
            Some(anything_changed),
            pg_sys::Datum::from(0),
        );
        // A cast to `json` changes how the values of its type are written.
        pg_sys::CacheRegisterSyscacheCallback(
            pg_sys::SysCacheIdentifier::CASTSOURCETARGET as i32,
            Some(anything_changed),
            pg_sys::Datum::from(0),
        );
    }
}

/// The watch that a trigger asks for.
pub fn of(data: &pg_sys::TriggerData) -> Rc<Watch> {
    // SAFETY: Postgres gives a trigger function its trigger.
    let trigger = unsafe { &*data.tg_trigger };
    let key = trigger.tgoid.to_u32();
    let known = CACHE.with_borrow(|cache| cache.known.get(&key).map(|known| known.watch.clone()));
    known.unwrap_or_else(|| look(trigger, data.tg_relation))
}

/// Compiles the watch of a trigger, unless one with the same source exists.
fn look(trigger: &pg_sys::Trigger, relation: pg_sys::Relation) -> Rc<Watch> {
    let before = INVALIDATIONS.get();
    // SAFETY: the relation is open and locked by the executor.
    let source = unsafe { Source::of(trigger, relation) }.unwrap_or_else(|error| error.raise());
    let shared = CACHE.with_borrow(|cache| cache.watches.iter().find(|watch| watch.source == source).cloned());
    // SAFETY: as above.
    let compile = || Rc::new(unsafe { Watch::compile(source, relation) }.unwrap_or_else(|error| error.raise()));
    let watch = shared.unwrap_or_else(compile);
    if before == INVALIDATIONS.get() {
        // SAFETY: as above.
        let relation = unsafe { (*relation).rd_id };
        CACHE.with_borrow_mut(|cache| cache.add(trigger.tgoid.to_u32(), Known { relation, watch: watch.clone() }));
    }
    watch
}

impl Cache {
    fn add(&mut self, trigger: u32, known: Known) {
        let is_new = !self.watches.iter().any(|watch| Rc::ptr_eq(watch, &known.watch));
        if self.known.len() >= MAX_TRIGGERS || is_new && self.watches.len() >= MAX_WATCHES {
            *self = Self::default();
        }
        if !self.watches.iter().any(|watch| Rc::ptr_eq(watch, &known.watch)) {
            self.watches.push(known.watch.clone());
        }
        self.known.insert(trigger, known);
    }

    fn forget(&mut self, is_stale: impl Fn(&Known) -> bool) {
        let before = self.known.len();
        self.known.retain(|_, known| !is_stale(known));
        if self.known.len() < before {
            // Only this list has it.
            self.watches.retain(|watch| Rc::strong_count(watch) > 1);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    forget(|known| [pg_sys::InvalidOid, known.relation, known.watch.source.named].contains(&relation));
}

#[pg_guard]
unsafe extern "C-unwind" fn anything_changed(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
    forget(|_| true);
}

fn forget(is_stale: impl Fn(&Known) -> bool) {
    INVALIDATIONS.set(INVALIDATIONS.get() + 1);
    CACHE.with_borrow_mut(|cache| cache.forget(is_stale));
}
