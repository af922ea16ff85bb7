//! Pages of rows.

use std::{ops::Bound, time::Duration};

use crate::vocabulary::Tick;

/// Most rows of a page, and most rows that are read for one.
pub const MOST_ROWS: usize = 1000;

/// Some rows, and where the next page begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<R, C> {
    /// Sorted by name.
    pub rows: Vec<R>,
    /// The next page begins after this; `None`: this page is the last.
    pub next: Option<C>,
}

/// The first rows of many.
pub fn page<R, C>(rows: impl Iterator<Item = (C, R)>, limit: usize) -> Page<R, C> {
    let limit = limit.clamp(1, MOST_ROWS);
    let mut page = Page {
        rows: Vec::new(),
        next: None,
    };
    let mut last = None;
    for (cursor, row) in rows {
        if page.rows.len() == limit {
            page.next = last;
            break;
        }
        page.rows.push(row);
        last = Some(cursor);
    }
    page
}

/// Everything after a cursor.
pub fn beyond<C>(after: Option<&C>) -> (Bound<&C>, Bound<&C>) {
    (
        after.map_or(Bound::Unbounded, Bound::Excluded),
        Bound::Unbounded,
    )
}

/// Time from one tick to a later one, at least zero.
pub fn until(at: Tick, now: Tick) -> Duration {
    Duration::from_millis(at.0.saturating_sub(now.0))
}
