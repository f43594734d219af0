from nemo_comat.views.description import describe as describe
from nemo_comat.views.description import describe_steps as describe_steps
from nemo_comat.views.first_batch import first_batch_warnings as first_batch_warnings
from nemo_comat.views.pictures import AlignmentPictures as AlignmentPictures
from nemo_comat.views.plot import Alignment as Alignment
from nemo_comat.views.plot import alignment_image as alignment_image
from nemo_comat.views.plot import plot_alignment as plot_alignment
from nemo_comat.views.plot import plot_utterance as plot_utterance
