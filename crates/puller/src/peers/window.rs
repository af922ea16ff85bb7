//! The last bytes of a layer that is arriving, in memory, so that they are passed on before the layer is complete: the
//! runtime cannot be asked for bytes of a layer that it does not have as a whole.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use kubefledged_proto::Bytes;
use tokio::sync::watch;

use super::locked;

/// Memory for one layer, in bytes.
const LAYER: usize = 12 << 20;
/// Memory for all layers together.
const ALL: usize = 32 << 20;

/// What comes next for somebody who reads along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Bytes from the asked offset on.
    Part(Bytes),
    /// Nothing new has arrived.
    Wait,
    /// Those bytes are not kept any more.
    Behind,
    /// Nothing more arrives here: the layer is in the store, or was given up.
    Ended,
}

/// One layer that is arriving.
#[derive(Debug)]
pub struct Window {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Offset of the first byte that is kept, and that of the next to arrive.
    start: u64,
    end: u64,
    parts: VecDeque<Bytes>,
    ended: bool,
}

impl Window {
    /// Of a layer of which this much is written already.
    fn new(offset: u64) -> Self {
        let state = State {
            start: offset,
            end: offset,
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Adds bytes, and forgets the oldest above `most`.
    fn push(&self, bytes: Bytes, most: usize) {
        let mut state = self.state();
        state.end += bytes.len() as u64;
        state.parts.push_back(bytes);
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        while state.end - state.start > most
            && let Some(first) = state.parts.pop_front()
        {
            state.start += first.len() as u64;
        }
        drop(state);
        self.changed.send_replace(());
    }

    /// Nothing more arrives.
    fn end(&self) {
        self.state().ended = true;
        self.changed.send_replace(());
    }

    /// Returns what is known from an offset on.
    pub fn next(&self, offset: u64) -> Next {
        let state = self.state();
        if state.ended {
            return Next::Ended;
        }
        if offset < state.start {
            return Next::Behind;
        }
        let mut at = state.start;
        for part in &state.parts {
            let length = part.len() as u64;
            if offset < at + length {
                let from = usize::try_from(offset - at).unwrap_or_default();
                return Next::Part(part.slice(from..));
            }
            at += length;
        }
        Next::Wait
    }

    /// Tells when something changes after now.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

/// The layers that are arriving on this node, by digest.
#[derive(Debug, Default)]
pub struct Windows(Mutex<HashMap<String, Arc<Window>>>);

impl Windows {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Arc<Window>>> {
        locked(&self.0)
    }

    /// Returns the window of a layer, if it is arriving.
    pub fn get(&self, digest: &str) -> Option<Arc<Window>> {
        self.all().get(digest).cloned()
    }

    /// Opens the window of a layer of which this much is written. The layer has one writer, so there is no other.
    pub fn open(self: &Arc<Self>, digest: &str, offset: u64) -> Arriving {
        let window = Arc::new(Window::new(offset));
        self.all().insert(digest.to_owned(), window.clone());
        Arriving {
            windows: self.clone(),
            digest: digest.to_owned(),
            window,
        }
    }

    /// Memory for each, with as many as there are now.
    fn share(&self) -> usize {
        LAYER.min(ALL / self.all().len().max(1))
    }
}

/// The writer's side of a window. Dropping it ends the window.
pub struct Arriving {
    windows: Arc<Windows>,
    digest: String,
    window: Arc<Window>,
}

impl Arriving {
    /// These bytes arrived.
    pub fn push(&self, bytes: Bytes) {
        self.window.push(bytes, self.windows.share());
    }

    /// What arrived is wrong: it begins anew.
    pub fn restart(&mut self) {
        self.window.end();
        self.window = Arc::new(Window::new(0));
        let window = self.window.clone();
        self.windows.all().insert(self.digest.clone(), window);
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let mut all = self.windows.all();
        if all
            .get(&self.digest)
            .is_some_and(|known| Arc::ptr_eq(known, &self.window))
        {
            all.remove(&self.digest);
        }
        drop(all);
        self.window.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(length: usize, value: u8) -> Bytes {
        vec![value; length].into()
    }

    #[test]
    fn whoever_keeps_up_reads_everything_and_whoever_falls_behind_is_told() {
        let windows = Arc::new(Windows::default());
        let arriving = windows.open("a", 5);
        let window = windows.get("a").unwrap();
        assert_eq!(window.next(4), Next::Behind);
        assert_eq!(window.next(5), Next::Wait);
        arriving.push(bytes(4, 1));
        arriving.push(bytes(3, 2));
        assert_eq!(window.next(5), Next::Part(bytes(4, 1)));
        assert_eq!(window.next(7), Next::Part(bytes(2, 1)));
        assert_eq!(window.next(9), Next::Part(bytes(3, 2)));
        assert_eq!(window.next(12), Next::Wait);
        for _ in 0..LAYER {
            arriving.push(bytes(1 << 10, 3));
            if window.next(12) == Next::Behind {
                break;
            }
        }
        assert_eq!(window.next(12), Next::Behind);
        drop(arriving);
        assert_eq!(window.next(12), Next::Ended);
        assert!(windows.get("a").is_none());
    }

    #[test]
    fn all_windows_together_have_a_limit_too() {
        let windows = Arc::new(Windows::default());
        let names = ["a", "b", "c", "d"];
        let all: Vec<Arriving> = names.iter().map(|name| windows.open(name, 0)).collect();
        for _ in 0..16 {
            for arriving in &all {
                arriving.push(bytes(1 << 20, 1));
            }
        }
        let kept: u64 = all
            .iter()
            .map(|arriving| {
                let state = arriving.window.state();
                state.end - state.start
            })
            .sum();
        assert_eq!(kept, ALL as u64);
    }

    #[test]
    fn bytes_that_were_wrong_are_passed_on_no_more() {
        let windows = Arc::new(Windows::default());
        let mut arriving = windows.open("a", 0);
        let window = windows.get("a").unwrap();
        arriving.push(bytes(4, 1));
        arriving.restart();
        assert_eq!(window.next(0), Next::Ended);
        assert_eq!(windows.get("a").unwrap().next(0), Next::Wait);
    }
}
