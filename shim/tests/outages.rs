//! containerd is away for a while, at each step of a pod's life: nothing waits for it, and it hears of everything, in order
//! and once.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hull_shim::client::{Process, Reach, TaskClient};
use support::containerd::{Containerd, Outage, Told};
use support::{Pod, eventually};

/// The requests of a life, see [`step`].
const STEPS: usize = 10;
/// What is told of them.
const STORY: [&str; 9] =
    ["create", "start", "exec-added", "exec-started", "paused", "resumed", "exit e", "exit", "delete"];
/// How many requests an outage outlasts.
const MISSED: usize = 2;
/// Longer than any request may take, whoever does not listen to its events.
const PROMPT: Duration = Duration::from_secs(4);
/// Lives that are lived at the same time.
const AT_ONCE: usize = 8;

const WEB: Process<'static> = Process { container: "web", exec: "" };
const EXEC: Process<'static> = Process { container: "web", exec: "e" };

fn new_pod() -> (Pod, Containerd) {
    let pod = Pod::new("web", &["sleep", "1000"]);
    let containerd = pod.containerd();
    (pod, containerd)
}

async fn promptly<T>(request: impl Future<Output = T>) -> T {
    tokio::time::timeout(PROMPT, request).await.expect("it waits for containerd")
}

async fn step(number: usize, pod: &Pod, client: &TaskClient) {
    promptly(async {
        match number {
            0 => drop(client.create(&pod.request).await.unwrap()),
            1 => drop(client.start(WEB).await.unwrap()),
            2 => client.exec(&pod.exec_request("e", &["sleep", "1000"])).await.unwrap(),
            3 => drop(client.start(EXEC).await.unwrap()),
            4 => client.pause("web").await.unwrap(),
            5 => client.resume("web").await.unwrap(),
            6 => {
                client.kill(EXEC, 9, Reach::Process).await.unwrap();
                client.wait(EXEC).await.unwrap();
            }
            7 => drop(client.delete(EXEC).await.unwrap()),
            8 => {
                client.kill(WEB, 9, Reach::Process).await.unwrap();
                client.wait(WEB).await.unwrap();
            }
            9 => drop(client.delete(WEB).await.unwrap()),
            other => panic!("there is no step {other}"),
        }
    })
    .await;
}

fn names(told: Vec<Told>) -> Vec<String> {
    let name = |Told { topic, exec, .. }| {
        if topic == "exit" && !exec.is_empty() { format!("exit {exec}") } else { topic }
    };
    told.into_iter().map(name).collect()
}

/// A life during which containerd is away from before a step until some steps later.
async fn away_from(first: usize, how: Outage) {
    let (pod, mut containerd) = new_pod();
    let client = pod.connect().await;
    for number in 0..STEPS {
        if number == first {
            containerd.go(how);
        }
        if number == first + MISSED {
            containerd.come_back();
        }
        step(number, &pod, &client).await;
    }
    // Also if it is away until the shim has nothing else to do.
    promptly(client.shutdown("web")).await.unwrap();
    if first + MISSED >= STEPS {
        containerd.come_back();
    }
    pod.assert_nothing_left();
    assert_eq!(names(containerd.told()), STORY, "{how:?} from step {first}");
}

#[test]
fn it_hears_what_it_missed() {
    let outages = [Outage::Refuses, Outage::Vanished, Outage::Hangs];
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let number = next.fetch_add(1, Ordering::SeqCst)
                    && number < STEPS * outages.len()
                {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(away_from(number / outages.len(), outages[number % outages.len()]));
                }
            });
        }
    });
}

#[tokio::test]
async fn it_may_be_away_for_long() {
    let (pod, mut containerd) = new_pod();
    let client = pod.connect().await;
    containerd.go(Outage::Refuses);
    for number in 0..STEPS {
        step(number, &pod, &client).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    containerd.come_back();
    eventually(|| containerd.has_told(STORY.len()), || "it is not told".into());
    promptly(client.shutdown("web")).await.unwrap();
    pod.assert_nothing_left();
    assert_eq!(names(containerd.told()), STORY);
}

#[tokio::test]
async fn it_may_be_away_for_good() {
    for how in [Outage::Refuses, Outage::Hangs] {
        let (pod, mut containerd) = new_pod();
        let client = pod.connect().await;
        for number in 0..STEPS {
            if number == 2 {
                containerd.go(how);
            }
            step(number, &pod, &client).await;
        }
        let asked = Instant::now();
        promptly(client.shutdown("web")).await.unwrap();
        pod.assert_nothing_left();
        assert!(asked.elapsed() < Duration::from_secs(10), "{how:?}: {:?}", asked.elapsed());
        assert_eq!(names(containerd.told()), STORY[..2]);
    }
}
