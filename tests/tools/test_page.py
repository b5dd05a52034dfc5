"""The page in a real browser: opened from disk, played, turned, pointed at; its numbers are those of the model."""

import shutil

import numpy as np
import pytest
import torch

import tools.predict
import tools.visualize
from feeder.layouts import default_layout
from tests.conftest import refusal
from tests.tools.test_predict import save_model
from tests.tools.test_visualize import SETTINGS, a_model
from tools.drawing import analysis, page
from util.checkpoint import Checkpoint

BROWSER = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed')
PLAYER = 'player.toDataURL()'
COUNT_PIXELS = """
const [canvas, hex] = arguments, wanted = [1, 3, 5].map(start => parseInt(hex.slice(start, start + 2), 16));
const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
let count = 0;
for (let i = 0; i < data.length; i += 4) count += wanted.every((value, c) => Math.abs(data[i + c] - value) < 12);
return count;
"""


class Page:
    """A page in the browser; `js` evaluates an expression of its script."""

    def __init__(self, driver, path):
        self.driver, self.url = driver, path.as_uri()
        driver.get_log('browser'), driver.get_log('performance')
        driver.get(self.url)

    def js(self, expression):
        return self.driver.execute_script(f'return {expression}')

    def text(self, name):
        return self.driver.find_element('id', name).text

    def pixels(self, canvas, colour):
        return self.driver.execute_script(COUNT_PIXELS, self.js(canvas), self.js(f'palette.{colour}'))

    def over(self, canvas, x, y):
        """Actions that begin with a move to a place of a canvas, in pixels from its left upper corner."""
        self.js(f'{canvas}.scrollIntoView({{block: "center"}})')
        element = self.driver.find_element('id', canvas)
        return webdriver.ActionChains(self.driver, duration=20).move_to_element_with_offset(element, *(
            round(place - element.size[side] / 2) for place, side in ((x, 'width'), (y, 'height'))))


@pytest.fixture(scope='module')
def driver():
    if not BROWSER or not shutil.which('chromedriver'):
        pytest.skip('no Chromium with chromedriver')
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    options.arguments.extend(['--headless=new', '--no-sandbox', '--disable-gpu', '--window-size=1280,900'])
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which('chromedriver')))
    yield driver
    driver.quit()


@pytest.fixture(scope='module')
def clip() -> analysis.Clip:
    joints = torch.randn(1, 3, 16, 20, 2, generator=torch.Generator().manual_seed(0)).cumsum(2) * 0.05
    joints += torch.randn(1, 3, 1, 20, 1, generator=torch.Generator().manual_seed(1))
    return analysis.Clip(joints, joints, 'a <clip>', None, default_layout(20))


@pytest.fixture(scope='module')
def model():
    return a_model(num_frames=16)


@pytest.fixture
def opened(driver, model, clip, tmp_path) -> Page:
    page.write_page(tmp_path / 'page.html', 'title', [page.clip_scene(page.OpenModel(model, SETTINGS, None, []), clip)])
    return Page(driver, tmp_path / 'page.html')


def test_it_opens_from_disk_without_errors_or_requests(opened, driver):
    assert driver.get_log('browser') == []
    requests = [line for line in driver.get_log('performance') if 'Network.requestWillBeSent"' in line['message']]
    assert len(requests) == 1 and opened.url in requests[0]['message']
    assert opened.text('title') == 'a <clip>' and opened.pixels('player', 'visible') > 50
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                           {'width': 390, 'height': 844, 'deviceScaleFactor': 1, 'mobile': True})
    assert opened.js('document.documentElement.scrollWidth') == 390
    driver.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def test_it_plays_and_scrubs(opened, driver):
    first, images = opened.js(PLAYER), []
    webdriver.ActionChains(driver).send_keys(' ').perform()
    driver.execute_async_script('const poll = () => state.frame > 3 ? arguments[0]() : setTimeout(poll, 20); poll()')
    assert opened.js(PLAYER) != first
    driver.find_element('id', 'play').click()
    assert not opened.js('state.playing') and opened.text('play') == 'Play'
    driver.find_element('id', 'reset').click()      # keeps the keyboard focus
    webdriver.ActionChains(driver).send_keys(webdriver.Keys.HOME, webdriver.Keys.RIGHT).perform()
    assert opened.js('state.frame') == 1
    for key, frame in ((webdriver.Keys.HOME, 0), (webdriver.Keys.RIGHT, 1), (webdriver.Keys.END, 15)):
        driver.find_element('id', 'frame').send_keys(key)
        assert opened.js('state.frame') == frame and f'frame {frame + 1} of 16' in opened.text('time')
        images.append(opened.js(PLAYER))
    assert len(set(images)) == 3 and images[0] == first


def test_turn_zoom_point_and_select(opened, driver):
    before = opened.js(PLAYER)
    opened.over('player', 60, 60).click_and_hold().move_by_offset(100, 0).release().perform()
    assert opened.js('state.yaw') == pytest.approx(-1, abs=0.05) and opened.js(PLAYER) != before
    origin = webdriver.common.actions.wheel_input.ScrollOrigin.from_element(driver.find_element('id', 'player'))
    webdriver.ActionChains(driver).scroll_from_origin(origin, 0, -200).perform()
    assert opened.js('state.zoom') > 1.1
    driver.find_element('id', 'reset').click()
    left, width, height = (opened.js(f'state.grid.{name}') for name in ('left', 'width', 'height'))
    cell = (left + 2.5 * width, 7.5 * height)
    opened.over('cells', *cell).perform()
    assert opened.js('[state.hover.joint, state.hover.segment, shownFrame(scenes[0])]') == [7, 2, 10]
    assert 'left hand, frames 9 to 12' in opened.text('readout')
    vermilion, pale = opened.pixels('cells', 'predicted'), opened.js(PLAYER)
    opened.over('cells', *cell).click().perform()
    assert opened.js('[state.query.joint, state.query.segment, state.map, state.frame]') == [7, 2, 'attention', 10]
    assert opened.pixels('cells', 'predicted') > vermilion + 50 and opened.js(PLAYER) != pale
    x, y = opened.js('state.views[0].project(vector(scenes[0], scenes[0].pose, 1, 10, 3))')
    opened.over('player', x, y).perform()       # a cell of the other body is selected
    assert opened.js('state.hover') is None and opened.js('state.body') == 0
    opened.over('player', x, y).click().perform()
    assert opened.js('[state.query.joint, state.body]') == [3, 1]
    opened.over('player', x, y).move_by_offset(1, 0).perform()
    assert opened.js('state.hover?.segment') == 2 and opened.js("!element('mark').hidden")


def test_its_numbers_are_those_of_the_model(opened, driver, model, clip):
    names = opened.js('scenes[0].masks.map(mask => mask.name)')
    assert len(set(names)) == 12
    for row in (0, names.index('random, 90 %, seed 1')):
        opened.js(f'change({{mask: {names[row]!r}}})')
        settings = SETTINGS if row == 0 else SETTINGS | {'motion_aware_tau': 0., 'mask_ratio': 0.9}
        for body in (0, 1):
            expected = analysis.analyse_clip(model, settings, clip, body, seed=int(row > 0)).prediction
            for t in (0, 6, 15):
                drawn = opened.js(f'arrows(scenes[0], {body}, {t})')
                joints = np.flatnonzero(expected.masked[t // 4])
                assert [arrow['joint'] for arrow in drawn] == joints.tolist()
                for name, array in (('true', expected.true), ('pred', expected.pred)):
                    np.testing.assert_allclose([arrow[name] for arrow in drawn], array[t][joints], atol=1e-3)
    for query, head in (((7, 2), 1), (None, 0), ((3, 1), None)):
        chosen = {'query': query and {'joint': query[0], 'segment': query[1]}, 'head': -1 if head is None else head}
        driver.execute_script('change({...arguments[0], body: 1, block: 1, map: "attention"})', chosen)
        expected = analysis.analyse_clip(model, SETTINGS, clip, 1, block=1, head=head, query=query).attention.weight
        np.testing.assert_allclose(opened.js('[...attentionMap(scenes[0])]'), expected.ravel(), atol=0.03)


def test_predicted_motion_adds_up_from_visible_joints(opened):
    """Against loops over frames, for one joint and coordinate at a time."""
    pose, pred, masked, path = (np.array(opened.js(f'[...{name}]')) for name in (
        'scenes[0].pose', 'currentMask(scenes[0]).pred', 'currentMask(scenes[0]).masked', 'predictedPath(scenes[0])'))
    pose, pred, path = (array.reshape(2, 16, 20, 3) for array in (pose, pred, path))
    masked, expected = masked.reshape(2, 4, 20), pose.copy()
    for m, t, v in np.ndindex(2, 15, 20):
        if masked[m, t // 4, v]:
            expected[m, t + 1, v] = expected[m, t, v] + pred[m, t, v]
    np.testing.assert_allclose(path, expected, atol=1e-5)


@pytest.mark.parametrize('changes, settings', [
    ({'target': 'joint'}, {}), ({}, {'motion_stride': 2}), ({}, {'stream': 'bone'}), ({}, {'keypoints': '2d'})])
def test_other_targets_and_streams(driver, clip, tmp_path, changes, settings):
    """The frame, the overlay and the caption fit what is predicted; without errors of the script."""
    scene = page.clip_scene(page.OpenModel(a_model(num_frames=16, **changes), SETTINGS | settings, None, []), clip)
    page.write_page(tmp_path / 'page.html', 'title', [scene])
    opened = Page(driver, tmp_path / 'page.html')
    is_motion, has_path = changes.get('target') != 'joint', settings.get('stream') != 'bone'
    legend = driver.find_element('css selector', '[data-for="true"]')
    assert legend.is_displayed() == is_motion == ('motion of' in opened.text('predicted').lower())
    assert opened.js("element('overlay').options[1].disabled") == (not has_path)
    if has_path:
        lag = settings.get('motion_stride', 1) if is_motion else 0
        pose, pred, path = (np.array(opened.js(f'[...{name}]')).reshape(2, 16, 20, 3) for name in (
            'scenes[0].pose', 'currentMask(scenes[0]).pred', 'predictedPath(scenes[0])'))
        v = int(np.flatnonzero(opened.js('[...scenes[0].masks[0].masked]'))[0])     # of body 0 in its first segment
        np.testing.assert_allclose(path[0, lag, v], pose[0, 0, v] + pred[0, 0, v], atol=1e-5)
    assert driver.get_log('browser') == []


def test_scenes_of_different_lengths(driver, model, clip, tmp_path):
    """Cells are matched by joint and time, masks by name; play and the slider reach the end of the longer scene."""
    short = clip._replace(joints=clip.joints[:, :, :8], stream=clip.stream[:, :, :8])
    other = a_model(num_frames=8, t_patch_size=2)
    scenes = [page.clip_scene(page.OpenModel(model, SETTINGS | {'mask_ratio': share}, None, []), sequence)
              for model, share, sequence in ((other, 0.6, short), (model, 0.5, clip))]
    page.write_page(tmp_path / 'page.html', 'title', scenes, {'beside': 1})
    opened = Page(driver, tmp_path / 'page.html')
    driver.find_element('id', 'frame').send_keys(webdriver.Keys.END)
    assert opened.js('[state.frame, ...shownScenes().map(shownFrame)]') == [15, 7, 15]
    opened.js("change({mask: 'random, 75 %, seed 1'})")
    assert opened.js('shownScenes().map(scene => currentMask(scene).name)') == ['random, 75 %, seed 1'] * 2
    opened.js('select({joint: 3, segment: 2})')      # frames 5 and 6
    assert opened.js('[cellOf(scenes[1], state.query), ...shownScenes().map(shownFrame)]') == [
        {'joint': 3, 'segment': 1}, 5, 5]
    opened.js('change({focus: 1, query: {joint: 3, segment: 3}, map: "attention"})')
    assert opened.js('cellOf(scenes[0], state.query)') is None
    assert opened.js('attentionMap(scenes[0]).every(value => value === 0)') and driver.get_log('browser') == []


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a pre-trained model, a classifier and a recording."""
    monkeypatch.chdir(tmp_path)
    for name, classes in (('mamp', None), ('classifier', 10)):
        loaded = Checkpoint.read(save_model(f'{name}.pth', 20, classes, 'nwucla_xview'))
        loaded.args |= SETTINGS
        loaded.write(f'{name}.pth')
    np.save('walk.npy', np.random.default_rng(2).normal(size=(90, 20, 3)).cumsum(axis=0))
    return tmp_path


def test_a_timeline_of_labels(driver, folder):
    tools.predict.main(['--checkpoint', 'classifier.pth', 'walk.npy', '--window', '20', '--html', 'p.html'])
    opened = Page(driver, folder / 'p.html')
    segments, buttons = opened.js('scenes[0].timeline'), driver.find_elements('css selector', '#labels button')
    assert len(buttons) == len(segments) > 2 and segments[-1]['end'] == 90
    longest = max({segment['label'] for segment in segments}, key=lambda label: sum(
        segment['end'] - segment['start'] for segment in segments if segment['label'] == label))
    assert driver.find_element('css selector', '#key li').text == opened.js(f'scenes[0].classes[{longest}]')
    buttons[-1].click()
    assert opened.js('state.frame') == segments[-1]['start'] and buttons[-1].get_attribute('aria-current') == 'true'
    top = driver.find_elements('css selector', '#top li')
    assert len(top) == 5 and top[0].text.startswith(opened.js(f'scenes[0].classes[{segments[-1]["label"]}]'))
    driver.execute_script('arguments[0].style.width = "100%"', buttons[0])        # as the only label
    assert buttons[0].size['width'] == driver.find_element('id', 'labels').size['width']
    driver.find_element('id', 'labels').send_keys(webdriver.Keys.LEFT)
    assert opened.js('state.frame') == segments[-2]['start'] and driver.get_log('browser') == []


def test_two_checkpoints_side_by_side(driver, folder):
    options = ['--checkpoint', 'mamp.pth', '--data_path', 'walk.npy', '--compare', 'classifier.pth']
    refusal(lambda: tools.visualize.main(options), '--compare', '--html')
    assert tools.visualize.main([*options, '--html', 'p.html']) == 0
    opened = Page(driver, folder / 'p.html')
    assert opened.js('state.views.length') == 2 and opened.text('left') == 'mamp.pth'
    answers, classes = (driver.find_element('id', name) for name in ('answers', 'classes'))
    assert answers.is_displayed() and not classes.is_displayed()
    driver.find_element('css selector', '#focus option[value="1"]').click()
    assert classes.is_displayed() and not answers.is_displayed() and driver.get_log('browser') == []
