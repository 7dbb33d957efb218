//! What one more organization takes of the worker's memory: its resident set with few and with many, warm access tokens
//! in the vault and next to none in the cache.

#![expect(clippy::cast_precision_loss, reason = "counts become rates, which are shown with three digits")]

#[path = "common/mod.rs"]
#[expect(dead_code, reason = "each benchmark uses its part of what they share")]
mod common;

use std::{collections::BTreeMap, thread::sleep, time::Duration};

use anyhow::Result;
use serde_json::json;

use self::common::{
    report::{Report, table, thousands},
    site::{Fleet, Options, Site},
    worker::Worker,
};

const SIZES: [u64; 4] = [10, 25_000, 50_000, 100_000];
/// How long a worker that is ready is left alone before it is looked at.
const SETTLE: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    let mut report = Report::new("memory");
    let small = Options { vault_cache: "1MB", token_cache: "1MB", issuer: None };
    report.note(
        "resident set 2 s after readiness, nothing fetched; caches of 1 MB, then the default 64 MB of the vault's",
    );
    let mut site = Site::new(small.clone())?;
    let mut rows = Vec::new();
    let mut kept = Vec::new();
    let mut filled = 0;
    let mut few = BTreeMap::new();
    for size in SIZES {
        site.fill(filled, size, Fleet::Warm)?;
        filled = size;
        for (name, options) in [("1 MB", small.clone()), ("64 MB", Options::default())] {
            site.set(options)?;
            let mut worker = Worker::start(&site, None)?;
            worker.ready()?;
            sleep(SETTLE);
            let resident = worker.process.status_bytes("VmRSS")?;
            let own = worker.process.status_bytes("RssAnon")?;
            let peak = worker.process.status_bytes("VmHWM")?;
            worker.process.terminate()?;
            let (base, base_size) = *few.entry(name).or_insert((resident, size));
            let each = (size > base_size).then(|| (resident as f64 - base as f64) / (size - base_size) as f64);
            let mebibytes = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
            rows.push(vec![
                thousands(size as f64, 0),
                name.to_owned(),
                mebibytes(resident),
                mebibytes(own),
                mebibytes(peak),
                each.map_or_else(|| "–".to_owned(), |each| thousands(each, 0)),
            ]);
            kept.push(json!({
                "organizations": size, "vault_cache": name, "resident_bytes": resident, "anonymous_bytes": own,
                "peak_bytes": peak, "bytes_per_further_organization": each,
            }));
        }
        site.set(small.clone())?;
    }
    let columns = [
        "organizations",
        "vault cache",
        "resident MiB",
        "of it anonymous",
        "at most",
        "bytes for each further organization",
    ];
    table(&columns, &rows);
    report.keep("sizes", json!(kept));
    report.finish()
}
