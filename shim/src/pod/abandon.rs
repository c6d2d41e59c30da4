//! Giving up a creation that nobody waits for any more. Who builds something looks whether it is still wanted, and undoes
//! what it has built as after any other failure.

use tokio::sync::watch;

use super::StartError;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Wanted,
    Unwanted,
}

/// The way to say that something is not wanted any more.
pub struct Abandon(watch::Sender<Wish>);

/// Whether something is still wanted. Clones tell the same.
#[derive(Clone)]
pub struct Abandoned(watch::Receiver<Wish>);

impl Abandon {
    /// Something that is wanted, until this says otherwise.
    pub fn new() -> (Self, Abandoned) {
        let (sender, receiver) = watch::channel(Wish::Wanted);
        (Self(sender), Abandoned(receiver))
    }

    /// It is not wanted any more.
    pub fn now(&self) {
        self.0.send_replace(Wish::Unwanted);
    }
}

impl Abandoned {
    /// Does the work to its end, unless it is not wanted any more: then it is dropped where it waits.
    pub async fn or<T, E: From<StartError>>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut wish = self.0.clone();
        let unwanted = async {
            if wish.wait_for(|wish| *wish == Wish::Unwanted).await.is_err() {
                // Nobody is left who could say it.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            result = work => result,
            () = unwanted => Err(StartError::Abandoned.into()),
        }
    }
}
