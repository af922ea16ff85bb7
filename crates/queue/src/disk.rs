//! The disk: from which level on nothing is pulled or pinned, from which on pulls that run are stopped, and which
//! pulls cannot fit.

use crate::{Bytes, Disk};

/// Percent above the watermark from which on pulls that run are stopped. The kubelet begins to evict pods at 85 % by
/// default, with our watermark at 80 %.
const MARGIN: u8 = 3;
/// Percent of the inodes in use from which on nothing is pulled, unless the watermark is higher. The kubelet evicts
/// pods at 95 % by default.
const INODES: u8 = 90;

impl Disk {
    /// A file system of so many bytes, of which so many are free, without a fixed number of inodes.
    pub fn of_bytes(capacity: u64, available: u64) -> Self {
        Self {
            capacity,
            available,
            ..Self::default()
        }
    }
}

/// Returns why nothing is pulled or pinned, with the figures; `None` below the watermark.
pub fn full(disk: Disk, watermark: u8) -> Option<String> {
    over(disk, watermark).map(|figures| {
        format!("{figures}: nothing is pulled or pinned from {watermark} % on (--disk-watermark)")
    })
}

/// Returns why pulls that run are stopped, with the figures.
pub fn crossed(disk: Disk, watermark: u8) -> Option<String> {
    let limit = limit(watermark);
    over(disk, limit).map(|figures| {
        format!(
            "{figures}: the pull was stopped, because it went over {limit} % \
             (--disk-watermark {watermark}, and {MARGIN} more)"
        )
    })
}

/// Returns why a pull of which these bytes are here cannot fit beside others that need `others` bytes.
pub fn lacks_room(disk: Disk, watermark: u8, bytes: Bytes, others: u64) -> Option<String> {
    let limit = limit(watermark);
    let kept = u128::from(disk.capacity) * u128::from(100 - limit) / 100;
    let room = u128::from(disk.available).saturating_sub(kept);
    let need = needs(bytes);
    (need > 0 && u128::from(need) + u128::from(others) > room).then(|| {
        format!(
            "the image does not fit: it needs at least {} MiB more, and {} MiB are free below {limit} % \
             of the file system of the images (--disk-watermark {watermark}, and {MARGIN} more)",
            need >> 20,
            (room >> 20).saturating_sub(u128::from(others >> 20)),
        )
    })
}

/// Bytes that a pull needs at least: what has not arrived lies on the disk twice, compressed and unpacked.
pub fn needs(bytes: Bytes) -> u64 {
    bytes.total.saturating_sub(bytes.done).saturating_mul(2)
}

fn limit(watermark: u8) -> u8 {
    watermark.saturating_add(MARGIN).min(100)
}

/// The figures, if bytes or inodes are used up to this level.
fn over(disk: Disk, level: u8) -> Option<String> {
    let percent = |free: u64, all: u64| {
        let used = all.saturating_sub(free);
        u128::from(used) * 100 / u128::from(all.max(1))
    };
    let used = percent(disk.available, disk.capacity);
    if used >= u128::from(level) {
        return Some(format!(
            "the file system of the images is {used} % full, {} of {} MiB are free",
            disk.available >> 20,
            disk.capacity >> 20,
        ));
    }
    let used = percent(disk.inodes_free, disk.inodes);
    (used >= u128::from(level.max(INODES))).then(|| {
        format!(
            "the file system of the images has {used} % of its inodes in use, {} of {} are free",
            disk.inodes_free, disk.inodes,
        )
    })
}
