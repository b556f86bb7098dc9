//! The cache of compiled watches. A watch is kept until its table, the type of a column, or a schema changes.
//! Partitions with the same columns share one watch.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use pgrx::prelude::*;

use crate::capture::watch::{Source, Watch};

/// The most different watches that a backend keeps. Each takes about 25 kB, so together they take about 12 MB. One more
/// empties the cache.
const MAX_WATCHES: usize = 500;

/// The most triggers that a backend knows the watches of, at 100 bytes each. One more empties the cache.
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
    /// The number of invalidations so far. A watch is not kept if one arrived while it was compiled.
    static INVALIDATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Registers the callbacks; called from `_PG_init`, inherited by every backend.
pub fn init() {
    // SAFETY: the functions have the signatures that Postgres expects, and live as long as the process.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::from(0));
        pg_sys::CacheRegisterSyscacheCallback(
            pg_sys::SysCacheIdentifier::NAMESPACEOID as i32,
            Some(anything_changed),
            pg_sys::Datum::from(0),
        );
        // A cast to `json` changes how the values of its type are rendered.
        pg_sys::CacheRegisterSyscacheCallback(
            pg_sys::SysCacheIdentifier::CASTSOURCETARGET as i32,
            Some(anything_changed),
            pg_sys::Datum::from(0),
        );
    }
}

/// The watch of a trigger that is called.
///
/// # Safety
/// Postgres is calling a trigger function with this data.
pub unsafe fn of(data: &pg_sys::TriggerData) -> Rc<Watch> {
    // SAFETY: the data of a call has a valid trigger, and the executor holds its relation open and locked.
    unsafe { of_trigger(&*data.tg_trigger, data.tg_relation) }
}

/// The watch of a trigger.
///
/// # Safety
/// The relation is open and locked, and the trigger is one of its triggers.
pub unsafe fn of_trigger(trigger: &pg_sys::Trigger, relation: pg_sys::Relation) -> Rc<Watch> {
    let key = trigger.tgoid.to_u32();
    let known = CACHE.with_borrow(|cache| cache.known.get(&key).map(|known| known.watch.clone()));
    // SAFETY: the relation is open and locked and has the trigger, as the caller promises.
    known.unwrap_or_else(|| unsafe { look_up(trigger, relation) })
}

/// Compiles the watch of a trigger, unless the cache has one with the same source.
///
/// # Safety
/// The relation is open and locked, and the trigger is one of its triggers.
unsafe fn look_up(trigger: &pg_sys::Trigger, relation: pg_sys::Relation) -> Rc<Watch> {
    let before = INVALIDATIONS.get();
    // SAFETY: the relation is open and locked, as the caller promises.
    let source = unsafe { Source::of(trigger, relation) }.unwrap_or_else(|error| error.raise());
    let shared = CACHE.with_borrow(|cache| cache.watches.iter().find(|watch| watch.source == source).cloned());
    // SAFETY: the relation is still open and locked, and the source is that of its trigger.
    let compile = || Rc::new(unsafe { Watch::compile(source, relation) }.unwrap_or_else(|error| error.raise()));
    let watch = shared.unwrap_or_else(compile);
    if before == INVALIDATIONS.get() {
        // SAFETY: the relation is still open.
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
            // A watch that only this list refers to is dropped.
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
