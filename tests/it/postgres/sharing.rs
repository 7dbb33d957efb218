//! Several workers on one database: who makes the schema, who claims what, and what they hear of each other.

use std::{collections::BTreeSet, path::PathBuf, thread};

use consentry::vault::postgres::{Batch, Name, News, Postgres, PostgresError, Settings};
use tokio::runtime::Runtime;

use super::{
    BRIEF, LONG, UNSEEN, Worker,
    bouncer::Bouncer,
    bytea,
    cluster::{Cluster, is_installed},
    deletion, grant, settings, write,
};
use crate::harness::eventually;

#[test]
fn workers_that_start_at_once_make_one_schema() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let bouncer = Bouncer::start(&cluster);
    for round in 0..3 {
        let schema = format!("together_{round}");
        let urls = [cluster.url(), bouncer.url(), cluster.url(), bouncer.url()];
        thread::scope(|scope| {
            urls.each_ref().map(|url| scope.spawn(|| Worker::open(url, &schema))).map(|opened| {
                opened.join().expect("each of them can use it");
            })
        });
    }
    cluster.on_primary("UPDATE together_0.migrations SET version = version + 1");
    let newer = Runtime::new().unwrap().block_on(Postgres::open(&settings(&cluster.url(), "together_0"))).err();
    assert!(matches!(newer, Some(PostgresError::Newer { .. })), "{newer:?}");
}

#[test]
fn the_server_must_prove_its_name() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let open = |host: &str, ca_file: Option<PathBuf>| {
        let settings = Settings { ca_file, ..settings(&cluster.tcp_url(host), "encrypted") };
        Runtime::new().unwrap().block_on(Postgres::open(&settings)).map(drop)
    };
    assert_eq!(open("localhost", Some(cluster.authority())), Ok(()));
    for (host, authority) in [("localhost", None), ("127.0.0.1", Some(cluster.authority()))] {
        let refused = open(host, authority);
        assert!(matches!(&refused, Err(PostgresError::Away(why)) if !why.contains("hush")), "{host}: {refused:?}");
    }
    let standby = Runtime::new().unwrap().block_on(Postgres::open(&settings(&cluster.standby_url(), "standby"))).err();
    assert!(matches!(standby, Some(PostgresError::Away(_))), "{standby:?}");
}

#[test]
fn what_is_due_goes_to_one_worker_each() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let bouncer = Bouncer::start(&cluster);
    let workers = [cluster.url(), bouncer.url(), cluster.url()].map(|url| Worker::open(&url, "claims"));
    let (lane, names) = ([3; 16], (1..=60).map(grant).collect::<Vec<_>>());
    workers[0].put_due(&names, lane);
    workers[0].put_due(&[grant(200)], [4; 16]);
    let claimed: Vec<Vec<Name>> = thread::scope(|scope| {
        let claim = |worker: &Worker| {
            let mut mine = Vec::new();
            loop {
                let more =
                    worker.runtime.block_on(worker.postgres.claim_due(lane, 7, 0, LONG, UNSEEN)).expect("an answer");
                if more.is_empty() {
                    return mine;
                }
                mine.extend(more.iter().map(|due| due.claim.name));
            }
        };
        let claiming = workers.each_ref().map(|worker| scope.spawn(move || claim(worker)));
        claiming.map(|claiming| claiming.join().expect("it claims")).into()
    });
    let all: Vec<_> = claimed.iter().flatten().copied().collect();
    assert_eq!(all.len(), names.len(), "none twice: {claimed:?}");
    assert_eq!(all.iter().collect::<BTreeSet<_>>(), names.iter().collect::<BTreeSet<_>>(), "and every one once");

    // What is given up, and what has run out, can be had again.
    let again = |lease| {
        let due = workers[1].runtime.block_on(workers[1].postgres.claim_due([4; 16], 9, 0, lease, UNSEEN)).unwrap();
        due.iter().map(|due| due.claim).collect::<Vec<_>>()
    };
    let claim = again(LONG);
    assert_eq!((claim.len(), again(LONG).len()), (1, 0));
    workers[1].runtime.block_on(workers[1].postgres.give_up(&claim)).unwrap();
    assert_eq!(again(BRIEF).len(), 1);
    let taken = eventually("the claim runs out", || again(LONG).pop());
    assert_eq!(taken.number, claim[0].number + 2);
}

#[test]
fn news_skip_nothing_that_commits_late() {
    if !is_installed() {
        return;
    }
    let cluster = Cluster::shared();
    let worker = Worker::open(&cluster.url(), "news");
    let [early, late] =
        [1, 2].map(|id| worker.write(grant(id), 0, b"first").map(|version| (grant(id), version)).unwrap());
    let mut news = worker.runtime.block_on(worker.postgres.news()).expect("where it is");
    let cursor = news.cursor();

    // A transaction that has its number before another, and commits after it.
    let slow = worker.runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(&cluster.url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let name = bytea(late.0.as_bytes());
        let update = format!(
            "BEGIN; UPDATE news.records SET version = version + 1, changed = pg_current_xact_id() WHERE name = {name}"
        );
        client.batch_execute(&update).await.unwrap();
        client
    });
    assert_eq!(worker.write(early.0, early.1, b"second"), Ok(early.1 + 1));
    assert_eq!(poll(&worker, &mut news).get(&early.0), Some(&(early.1 + 1)), "it is not held up");
    assert!(!poll(&worker, &mut news).contains_key(&late.0));
    worker.runtime.block_on(slow.batch_execute("COMMIT")).unwrap();
    assert_eq!(poll(&worker, &mut news).get(&late.0), Some(&(late.1 + 1)));
    eventually("what was seen is given no more", || poll(&worker, &mut news).is_empty().then_some(()));
    assert!(news.cursor() > cursor);

    // A deletion is news, too; and more than a page comes whole.
    let gone = deletion(early.0, early.1 + 1);
    worker.commit(Batch { writes: vec![gone], ..Batch::default() }).unwrap();
    let (fresh, _) = worker.runtime.block_on(news.poll()).unwrap();
    assert!(fresh.iter().any(|fresh| fresh.name == early.0 && fresh.gone), "{fresh:?}");
    let many: Vec<_> = (0..=u16::MAX).step_by(64).map(many).collect();
    for names in many.chunks(1000) {
        let writes = names.iter().map(|name| write(*name, 0, b"x")).collect();
        worker.commit(Batch { writes, ..Batch::default() }).unwrap();
    }
    let all = poll(&worker, &mut news);
    assert!(many.iter().all(|name| all.contains_key(name)), "{} of {}", all.len(), many.len());
}

fn many(number: u16) -> Name {
    let mut bytes = [9; 17];
    bytes[..3].copy_from_slice(&[grant(0).as_bytes()[0], number.to_be_bytes()[0], number.to_be_bytes()[1]]);
    Name::parse(&bytes).expect("a grant's name")
}

/// All the news that there are, by name.
fn poll(worker: &Worker, news: &mut News) -> std::collections::BTreeMap<Name, u64> {
    let mut all = std::collections::BTreeMap::new();
    loop {
        let (fresh, is_all) = worker.runtime.block_on(news.poll()).expect("news");
        all.extend(fresh.iter().map(|fresh| (fresh.name, fresh.version)));
        if is_all {
            return all;
        }
    }
}
