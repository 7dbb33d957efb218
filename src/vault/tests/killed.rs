//! A process that is killed while it commits.

use super::*;

/// Where the child of the next test finds its vault.
const CHILD: &str = "CONSENTRY_TEST_VAULT";

const CHILD_TASKS: u32 = 4;

const CHILD_GRANTS: u32 = 40;

fn child_id(task: u32, grant: u32) -> GrantId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&task.to_le_bytes());
    id[4..8].copy_from_slice(&grant.to_le_bytes());
    GrantId::from_bytes(id)
}

#[test]
fn a_killed_process_loses_nothing_that_it_acknowledged() {
    use std::io::BufRead;
    let fixture = Fixture::new();
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut acknowledged = vec![0_u32; CHILD_TASKS as usize];
    for round in 0..3 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([&format!("{module}::commits_until_it_is_killed"), "--exact", "--ignored", "--nocapture"])
            .env(CHILD, fixture.temporary.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut left = 300 + round * 177_u32;
        for line in lines {
            let line = line.unwrap();
            let Some((task, count)) = line.strip_prefix("done ").and_then(|line| line.split_once(' ')) else {
                continue;
            };
            acknowledged[task.parse::<usize>().unwrap()] = count.parse().unwrap();
            left = left.saturating_sub(1);
            if left == 0 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert_eq!(left, 0, "the child ended by itself");
        let vault = fixture.open();
        for (task, last) in (0..).zip(&acknowledged) {
            for count in last.saturating_sub(CHILD_GRANTS - 1).max(1)..=*last {
                let read = vault.grant(child_id(task, count % CHILD_GRANTS)).at_once().unwrap().unwrap();
                assert!(read.value.failures >= count, "task {task} lost commit {count}");
            }
        }
        if round % 2 == 0 {
            vault.close().unwrap();
        }
    }
}

#[test]
#[ignore = "the child of a_killed_process_loses_nothing_that_it_acknowledged"]
fn commits_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let identity = Identity::read(&path.join("identity.txt")).unwrap();
    let config = VaultConfig {
        path: path.join("vault"),
        identity_file: path.join("identity.txt"),
        recipients: Vec::new(),
        cache_bytes: 8 << 20,
        backup_dir: None,
        backup_keep: 14,
        postgres: None,
    };
    let vault = Vault::open(&config, &identity, Metrics::new(&[])).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..CHILD_TASKS).map(|task| tokio::spawn(commit_forever(vault.clone(), task))).collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

#[expect(clippy::print_stdout, reason = "the parent reads what was acknowledged")]
async fn commit_forever(vault: Vault, task: u32) {
    let so_far = (0..CHILD_GRANTS).filter_map(|number| vault.grant(child_id(task, number)).at_once().unwrap());
    let first = so_far.map(|stored| stored.value.failures).max().unwrap_or(0) + 1;
    for count in first.. {
        let id = child_id(task, count % CHILD_GRANTS);
        let put = Grant { id, failures: count, ..grant(1) };
        let mark = Intent { grant: id, ..intent(1) };
        let gone = child_id(task, (count + 7) % CHILD_GRANTS);
        let changes = vec![Change::PutGrant(Box::new(put)), Change::PutIntent(mark), Change::DeleteIntent(gone)];
        vault.commit(changes).await.unwrap();
        println!("done {task} {count}");
    }
}
